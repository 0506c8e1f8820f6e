"""What a step must do at the least: bytes it reads and floating-point operations, by operation, from the config alone.

This is the arithmetic behind "a fraction of the ceiling". Bytes are those of weights as they are stored, each counted
once a step, and of cache entries that have to be looked at; activations, which stay in a CPU's caches, are not counted.
A multiplication and an addition are two operations. Nothing is measured here.

Shape legend: n = tokens of a step, t = tokens before it, d = hidden size, H = heads, c = head_dim, I = indexer heads,
ci = index_head_dim, k = entries looked at, W = sliding window, E = experts, A = active experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foveal.cache import CacheFormat, CacheLayout
from foveal.cache.contract import Part
from foveal.checkpoint.layout import Storage, WeightSpec, stored_tensors, weight_specs
from foveal.config import LayerKind, ModelConfig

OPS = ("embed", "hyper", "project", "index", "attend", "output", "route", "experts", "head")
"""Operations, in the order of the network, under the names that a network's profile has for them.

embed: rows of the embedding. hyper: the hyper-connections' coefficients. project: everything that comes from the
layer's input: queries, raw KV, the compressors' rows, the indexer's queries and head weights. index: index keys against
index queries. attend: window and entries. output: the grouped output. route: the router. experts: routed and shared
ones. head: the logits, for one token of a step. What a profile names beside these has next to nothing to read or
compute.
"""


@dataclass(frozen=True)
class Work:
    """Least work of one operation in a step: `nbytes` to read, `flops` to compute, for all layers together."""

    nbytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.nbytes + other.nbytes, self.flops + other.flops)

    def seconds(self, bandwidth: float, flops: float) -> float:
        """The shortest time at `bandwidth` bytes and `flops` operations a second, reading and computing overlapped."""
        return max(self.nbytes / bandwidth, self.flops / flops)


def step_work(
    config: ModelConfig, *, tokens: int = 1, depth: int = 0, format: CacheFormat | None = None
) -> dict[str, Work]:
    """The work of one step of `tokens` tokens of one sequence after `depth` tokens, by operation (`OPS`).

    The cache is kept as `format` says (default BF16). Expert weights are those of the experts that random routing
    reaches on average.
    """
    work = dict.fromkeys(OPS, Work())
    for spec in weight_specs(config):
        op = _op_of(spec)
        if op is not None:
            work[op] += _matrix(config, spec, op, tokens)
    layout = CacheLayout(config, format)
    for layer in range(config.num_hidden_layers):
        work["attend"] += _attend(config, layout, layer, tokens, depth)
        if config.kind(layer) is LayerKind.CSA:
            work["index"] += _score(config, layout, layer, tokens, depth)
    return work


def total(work: Mapping[str, Work]) -> Work:
    """All operations together."""
    return sum(work.values(), Work())


@dataclass(frozen=True)
class Fraction:
    """One operation held against the ceilings: `least` seconds a step, `spent` seconds a step, and whether bytes
    ("read") or arithmetic ("compute") is what bounds it. `share` is least / spent, 1 at the ceiling."""

    op: str
    work: Work
    least: float
    spent: float
    bound: str

    @property
    def share(self) -> float:
        return self.least / self.spent


def fractions(
    work: Mapping[str, Work], spent: Mapping[str, float], *, bandwidth: float, flops: float
) -> list[Fraction]:
    """Every operation that was timed (`spent`, seconds a step) and whose work is known, then the step as a whole.

    The whole step is ``"step"``: all work against all time, that of operations without known work included.
    """
    found = [_fraction(op, work[op], spent[op], bandwidth, flops) for op in work if spent.get(op)]
    everything = sum(spent.values())
    if everything:
        least = sum(part.seconds(bandwidth, flops) for part in work.values())
        both = total(work)
        bound = "read" if both.nbytes / bandwidth >= both.flops / flops else "compute"
        found.append(Fraction("step", both, least, everything, bound))
    return found


def _fraction(op: str, work: Work, spent: float, bandwidth: float, flops: float) -> Fraction:
    bound = "read" if work.nbytes / bandwidth >= work.flops / flops else "compute"
    return Fraction(op, work, work.seconds(bandwidth, flops), spent, bound)


# ---------------------------------------------------------------------- matrices

_OP_OF_MATRIX = (
    ("embed.", "embed"),
    (".attn.wo_", "output"),
    (".attn.", "project"),
    (".ffn.gate.weight", "route"),
    (".ffn.", "experts"),
    ("hc_", "hyper"),
    ("head.weight", "head"),
)


def _op_of(spec: WeightSpec) -> str | None:
    """The operation a matrix belongs to; None for what no token is multiplied with, and MTP blocks."""
    if len(spec.shape) != 2 or spec.name.startswith("mtp.") or spec.name.endswith((".ape", ".tid2eid")):
        return None
    return next(op for part, op in _OP_OF_MATRIX if part in spec.name)


def _matrix(config: ModelConfig, spec: WeightSpec, op: str, tokens: int) -> Work:
    stored = sum(tensor.nbytes for tensor in stored_tensors(config, spec))
    if op == "embed":
        return Work(tokens * stored / spec.shape[0])
    if op == "head":
        tokens = 1
    if spec.storage is Storage.EXPERT:
        visited = config.num_experts_per_tok / config.n_routed_experts
        return Work(stored * (1 - (1 - visited) ** tokens), 2 * spec.elements * visited * tokens)
    return Work(stored, 2 * spec.elements * tokens)


# ---------------------------------------------------------------------- the cache


def _score(config: ModelConfig, layout: CacheLayout, layer: int, tokens: int, depth: int) -> Work:
    """Every key is read once a step; a product of ci channels for each head, token and key, no more than are visible.

    There is nothing to score while there are no more entries than are looked at.
    """
    keys = config.entries_after(depth + tokens, layer)
    if keys <= config.index_topk:
        return Work()
    visible = _mean(config.entries_after(depth, layer), keys)
    flops = 2 * config.index_n_heads * config.index_head_dim * visible * tokens
    return Work(keys * layout.entry_bytes(layer, Part.INDEX), flops)


def _attend(config: ModelConfig, layout: CacheLayout, layer: int, tokens: int, depth: int) -> Work:
    """Window and entries: two products of c channels (scores, sum) for each head, token and row.

    A CSA layer looks at `index_topk` entries of a token; those of several tokens may be the same ones, so a step reads
    at least that many and at most all: with several tokens all are counted, up to tokens * topk.
    """
    rows = min(config.sliding_window, depth + tokens)
    window_bytes = (rows + tokens - 1) * config.head_dim * layout.format.window_dtype.itemsize
    there = config.entries_after(depth + tokens, layer)
    seen, read = _mean(config.entries_after(depth, layer), there), there
    if config.kind(layer) is LayerKind.CSA:
        seen, read = min(seen, config.index_topk), min(there, tokens * config.index_topk)
    entry_bytes = layout.entry_bytes(layer, Part.MAIN) if there else 0
    looked_at = _mean(min(config.sliding_window, depth + 1), rows) + seen
    flops = 4 * config.num_attention_heads * config.head_dim * looked_at * tokens
    return Work(window_bytes + read * entry_bytes, flops)


def _mean(first: float, last: float) -> float:
    return (first + last) / 2
