"""Indexer recall: how much of the true attention the indexer's top-k holds.

What is special here: nothing is computed a second time. The network itself (`foveal.model.Transformer` on the native
operations) runs over a fork of the memory, and its operations are watched. Where a CSA layer attends to the entries its
indexer chose, the same `attend`, with the same query, entries and sink, is asked once more for *all* entries and
traced: that is the true attention. The share of its mass on entries that lies in the top-k is the recall. What the
layer passes on is the ordinary, sparse result. The text is that of `recall`; the network is given the cue and then the
true continuation, and the rows that choose the continuation's tokens count.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from foveal.api import model_folder
from foveal.checkpoint import open_checkpoint
from foveal.config import LayerKind, ModelConfig
from foveal.evals.bench import Bench
from foveal.evals.material import Material
from foveal.evals.scoring import tokens_after
from foveal.evals.task import Context, Measured, Measuring, Metrics, Question
from foveal.evals.tasks.recall import ANSWER_TOKENS, CODE, code_context
from foveal.memory import Memory
from foveal.model import Segment, Transformer, load_transformer
from foveal.ops import AttendInput, Backend, Mass, Numerics, cpu
from foveal.text import Tokenizer
from foveal.text.specials import PAD

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Other sizes of the top-k for which the share is told."""


class IndexerRecall(Measuring):
    """Shares of the attention mass on entries that lie inside the top-k."""

    name = "indexer"
    about = "share of the true attention mass that lies inside the indexer's top-k"
    metric = "mass_in_topk"
    family = CODE

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """The text and the cues of `recall`."""
        return code_context(material, length, count, rng)

    def measure(self, bench: Bench, context: Context, length: int, number: int) -> Iterator[Measured]:
        """``mass_in_topk``: mean over the rows and CSA layers of the share; ``mass_in_topk_layer_N`` by layer;
        ``mass_in_topk_pooled``: all mass inside over all mass, so that rows count by how much they look at entries;
        ``mass_in_top_K``: the mean share for other sizes; ``entry_mass``: mass on entries, heads summed."""
        watched = WatchedNetwork(bench.model)
        with bench.memory(context.documents) as memory:
            for place, question in enumerate(context.questions):
                tokens, rows = teacher_forced(memory, question)
                seen = watched.run(memory, tokens, rows)
                yield Measured(
                    place, _metrics(seen, watched.config), {"cue": question.cues[0], "place": question.place}
                )


def teacher_forced(memory: Memory, question: Question) -> tuple[list[int], int]:
    """Blanks, cue and true continuation as tokens, without the last one; and how many rows at its end choose a token of
    the continuation."""
    engine, tokenizer = memory.engine, memory.engine.tokenizer
    blanks = [tokenizer.control_id(PAD)] * engine.recall_blanks or tokenizer.encode("\n")
    answer = tokens_after(tokenizer, question.cues[0], question.expected, ANSWER_TOKENS)
    return [*blanks, *_before(tokenizer, question), *answer][:-1], len(answer)


def _before(tokenizer: Tokenizer, question: Question) -> list[int]:
    """The tokens of the cue as the source has them, up to the one in which its end lies."""
    cue, whole = question.cues[0], tokenizer.encode(question.cues[0] + question.expected)
    passed, size = 0, len(cue.encode("utf-8", "surrogatepass"))
    for place, token in enumerate(whole):
        passed += len(tokenizer.token_bytes(token))
        if passed > size:
            return whole[:place]
    return whole


@dataclass(frozen=True)
class Seen:
    """One CSA layer: for each watched row the mass on all entries, heads summed, and how much of it the chosen ones
    have, with the model's own top-k and with other sizes."""

    layer: int
    total: Tensor
    inside: Tensor
    at: dict[int, Tensor]


class WatchedNetwork:
    """A model whose CSA layers tell what they would have looked at."""

    def __init__(self, model: str) -> None:
        """Raises what opening the model raises."""
        checkpoint = open_checkpoint(model_folder(model))
        self.config = checkpoint.config
        self._watch = _Watch(self.config)
        # The indexer is asked only when there are more entries than top-k: with 1 it always is, and the watch then
        # answers with the real number.
        always = self.config.replace(index_topk=1)
        ops = cast(Backend, self._watch)
        self._model: Transformer = load_transformer(always, checkpoint.weights, ops=ops, numerics=Numerics())

    @torch.no_grad()
    def run(self, memory: Memory, tokens: Sequence[int], rows: int) -> list[Seen]:
        """Run `tokens` behind `memory`, which does not change; what its CSA layers saw at the last `rows` tokens."""
        self._watch.begin(rows)
        sequence = memory.sequence.fork()
        try:
            self._model(torch.tensor(tokens, dtype=torch.int64), [Segment(sequence, len(tokens))])
        finally:
            sequence.free()
        return self._watch.seen


class _Watch:
    """The native operations, of which `index_topk` and `attend` are watched."""

    def __init__(self, config: ModelConfig) -> None:
        self._topk = config.index_topk
        self._layers = [n for n in range(config.num_hidden_layers) if config.kind(n) is LayerKind.CSA]
        self.begin(0)

    def begin(self, rows: int) -> None:
        self._rows = rows
        self._chosen: dict[int, Tensor] = {}
        self.seen: list[Seen] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(cpu, name)

    def index_topk(self, query: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
        few = slice(len(query) - self._rows, None)
        for size in SIZES:
            if size < len(keys):
                found = cpu.index_topk(query[few].contiguous(), weights[few].contiguous(), keys, visible[few], size)
                self._chosen[size] = found
        chosen = cpu.index_topk(query, weights, keys, visible, self._topk)
        self._chosen[0] = chosen[few]
        return chosen

    def attend(self, x: AttendInput, *, trace: int = 0) -> tuple[Tensor, Mass | None]:
        if x.indices is not None:
            chosen, self._chosen = self._chosen, {}
            _, mass = cpu.attend(dataclasses.replace(x, indices=None), trace=self._rows)
            assert mass is not None
            visible = (x.positions[-self._rows :] + 1) // x.ratio
            hidden = torch.arange(mass.entries.shape[1]) >= visible.unsqueeze(1)
            entries = mass.entries.double().masked_fill(hidden, 0.0)
            inside = {size: _inside(entries, indices) for size, indices in chosen.items()}
            layer = self._layers[len(self.seen)]
            self.seen.append(Seen(layer, entries.sum(1), inside.pop(0), inside))
        return cpu.attend(x, trace=trace)


def _inside(entries: Tensor, indices: Tensor) -> Tensor:
    """Of the mass [rows, s], the sum over the chosen entries [rows, k] (-1: none)."""
    return (entries.gather(1, indices.clamp(min=0)) * (indices >= 0)).sum(1)


def _metrics(seen: Sequence[Seen], config: ModelConfig) -> Metrics:
    metrics: Metrics = {"mass_in_topk": fmean(_share(each.inside, each.total) for each in seen)}
    total = sum(float(each.total.sum()) for each in seen)
    metrics["mass_in_topk_pooled"] = sum(float(each.inside.sum()) for each in seen) / total
    for each in seen:
        metrics[f"mass_in_topk_layer_{each.layer}"] = _share(each.inside, each.total)
    for size in SIZES:
        if all(size in each.at for each in seen):
            metrics[f"mass_in_top_{size}"] = fmean(_share(each.at[size], each.total) for each in seen)
    metrics["entry_mass"] = total / sum(len(each.total) for each in seen)
    return metrics


def _share(inside: Tensor, total: Tensor) -> float:
    """Mean over the rows, rows that look at no entry left out."""
    some = total > 0
    return min(1.0, float((inside[some] / total[some]).mean())) if bool(some.any()) else 1.0
