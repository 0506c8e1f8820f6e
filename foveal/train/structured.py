"""A structured (mimetic) start: ordinary V4 tensors, set so that recall works from step 0 and training refines it.

From random weights a V4 of this size learns no recall within millions of tokens. The circuit it would have to find is
known, and every part of it is something V4 can represent exactly, so it is written down here:

1. *Code and signature.* The embedding of token x holds a constant, a short random code c(x) and a long one, E(x) (rare
   tokens louder). A fixed rotation R stands for one step back: the signature of a token is the sum of R^k E(x[t-k])
   over the tokens up to it, k = 0 among them. Layer 0's h heads each look one fixed distance back (a rotary phase
   against a constant key) and add the terms 1 to h; layer 1 picks up layer 0's signatures of h + 1 tokens farther
   back. So five heads see 36 tokens. Layer 0 also notes the codes of the last two tokens, each in channels of its own.
2. *Entries.* The CSA layer's compressor, by its position bias `ape`, gives an entry the signature of the token
   *before* its four (`key`), and the codes of the four, each in channels of its own (`slots`). So one key serves four
   places, and is four times as wide as a key for each place would be.
3. *Match.* Attention head j stands for the case that the next token is the entry's number j. It turns its own signature
   j steps back, R^-j, to meet the key, and compares the j last tokens, which the key has not got, with the codes in the
   slots before j. So what an entry holds as values is half of its key. The indexer does the same in fewer channels.
4. *Copy.* Head j carries slot j to output channels that the LM head reads.
5. *One race between the heads.* Each head has a softmax of its own, so four heads would each name a winner. The sink
   therefore stands *above* nearly every match: then every weight is near exp(logit - sink), the heads share their
   denominator, and their sum is one softmax over all places of all entries. What comes out is tiny for a weak match, so
   the copy is written very loud; the final norm brings loud and tiny to the same size, and only proportions remain.

Everything else starts small and random; nothing here exists at run time. Where things stand is in `ChannelPlan`.

The circuit fills the residual up to its attention, the CSA layer's; what comes after may write where it likes, for
nothing reads the circuit's channels any more but the head, which reads the output. So training has the experts of that
layer and all layers above it to itself, and `Circuit` names what it leaves alone: recall stays what it was
unless something above drowns a faint match, and where nothing matches, and the copy is next to nothing, the rest
speaks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from foveal.config import LayerKind, ModelConfig
from foveal.model.attention import Attention
from foveal.model.linear import Matrix, MatrixStack
from foveal.model.rope import rotation_of
from foveal.model.transformer import Block, Transformer

SLOTS = 4
NOTED = 2
"""Tokens before the present one whose codes layer 0 notes: with it, the three that stand before slot 3."""


@dataclass(frozen=True)
class ChannelPlan:
    """Where things stand in the residual (width d; channel 0 is a constant) and in an entry's channels that do not
    rotate. `recent` holds the codes of the last three tokens, the present one's first."""

    output: slice
    recent: tuple[slice, ...]
    signature: slice
    index_signature: int
    index_code: int

    @classmethod
    def of(cls, config: ModelConfig) -> ChannelPlan:
        """Of d, an eighth for a code, and what output and codes leave for the signature (an even number). Of an index
        key, an eighth for each of three codes."""
        d = config.hidden_size
        code = d // 8
        edges = [1 + i * code for i in range(NOTED + 3)]
        output, *recent = (slice(a, b) for a, b in pairwise(edges))
        signature = slice(edges[-1], d - (d - edges[-1]) % 2)
        index = config.index_head_dim - config.qk_rope_head_dim
        return cls(output, tuple(recent), signature, index - (SLOTS - 1) * (index // 8), index // 8)

    @property
    def code(self) -> int:
        """Channels of a code."""
        return _width(self.output)

    @property
    def matched(self) -> slice:
        """What a query is made of: the recent codes and the signature."""
        return slice(self.recent[0].start, self.signature.stop)

    @property
    def key(self) -> slice:
        """An entry's channels for the signature before it."""
        return slice(0, _width(self.signature))

    def slot(self, number: int) -> slice:
        """An entry's channels for the code of its token `number`."""
        first = self.key.stop + number * self.code
        return slice(first, first + self.code)

    def in_latent(self, channels: slice) -> slice:
        """Where residual channels stand in a query's latent, which holds `matched`."""
        return slice(channels.start - self.matched.start, channels.stop - self.matched.start)


@dataclass(frozen=True)
class Strengths:
    """The few numbers that set how sharp the circuit starts."""

    code_norm: float = 4.0
    far_weight: tuple[float, ...] = (0.8, 0.6, 0.45, 0.4, 0.35)
    loudness: tuple[float, float] = (0.8, 1.2)
    look_back_key: float = 8.0
    look_back_gain: float = 4.0
    match_logit: float = 60.0
    sink: float = 54.0
    slot_bias: tuple[float, float] = (4.0, -4.0)
    copy_gain: tuple[float, float] = (1e7, 1e7)
    copy_logit: float = 16.0
    noise: float = 0.01


@dataclass(frozen=True)
class Circuit:
    """What holds the circuit: `parameters` by the beginnings of their names, and `columns` of matrices by name."""

    parameters: tuple[str, ...]
    columns: dict[str, slice]

    @classmethod
    def of(cls, config: ModelConfig) -> Circuit:
        """Everything up to the CSA layer's attention, and what the head reads of its output."""
        last = config.layers_of(LayerKind.CSA)[-1]
        below = tuple(f"layers.{layer}." for layer in range(last))
        own = tuple(f"layers.{last}.{name}" for name in ("attn.", "attn_norm.", "hc_attn_"))
        return cls(("embed.", *below, *own), {"head.weight": ChannelPlan.of(config).output})

    def holds(self, name: str) -> bool:
        """Whether the parameter of that name belongs to it as a whole."""
        return name.startswith(self.parameters)


def structured_start(
    model: Transformer,
    frequencies: Tensor,
    *,
    blanks: Sequence[int] = (),
    seed: int = 0,
    strengths: Strengths | None = None,
    embedding: Tensor | None = None,
) -> None:
    """Set all parameters of `model`.

    `frequencies` [V] are the tokens' relative frequencies in the training data (rare tokens get a louder code, and the
    LM head starts as the unigram distribution); `blanks` are token ids without a code. `embedding` [V, d] of an earlier
    start is taken as it is, codes and all. Raises `ValueError` when the shape cannot hold the circuit.
    """
    builder = _Builder(model, frequencies, seed, strengths or Strengths(), embedding)
    with torch.no_grad():
        builder.build()
        for blank in blanks:
            builder.weight(model.embed)[blank, 1:] = 0.0


class _Builder:
    def __init__(
        self, model: Transformer, frequencies: Tensor, seed: int, strengths: Strengths, embedding: Tensor | None
    ) -> None:
        self.model, self.config, self.strengths, self.embedding = model, model.config, strengths, embedding
        self.plan = ChannelPlan.of(self.config)
        self.random = torch.Generator().manual_seed(seed)
        self.frequencies = (frequencies.double() + 1e-7).float()
        self.frequencies /= self.frequencies.sum()
        self._check_shape()
        self.angles = torch.rand(_width(self.plan.signature) // 2, generator=self.random) * (2 * math.pi)

    def _check_shape(self) -> None:
        config, plan = self.config, self.plan
        two_windows = [config.kind(i) for i in (0, 1)] == [LayerKind.SLIDING] * 2
        matching = bool(config.layers_of(LayerKind.CSA)) and config.index_n_heads % SLOTS == 0
        heads = config.num_attention_heads
        if not two_windows or not matching or not SLOTS <= heads <= len(self.strengths.far_weight):
            raise ValueError(
                "the structured start needs two window-only layers at the bottom, a CSA layer, 4 or "
                f"{len(self.strengths.far_weight)} attention heads and a multiple of 4 index heads"
            )
        latent, rank = _width(plan.matched), plan.signature.stop - plan.recent[1].start
        entry = plan.slot(SLOTS - 1).stop
        if config.q_lora_rank < latent or config.o_lora_rank < rank or config.nope_head_dim < entry:
            raise ValueError(
                f"the structured start needs q_lora_rank >= {latent}, o_lora_rank >= {rank}, "
                f"and {entry} channels of a head that do not rotate"
            )

    # ------------------------------------------------------------------ random pieces

    def normal(self, *shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=self.random) * std

    def directions(self, width: int) -> Tensor:
        """A random unit vector [V, width] for each token."""
        rows = self.normal(self.config.vocab_size, width, std=1.0)
        return rows / rows.norm(dim=1, keepdim=True)

    def rows_of_rotation(self, rows: int, columns: int) -> Tensor:
        """Some rows [rows, columns] of a random rotation, scaled so that lengths stay the same on average."""
        q, _ = torch.linalg.qr(torch.randn(columns, columns, generator=self.random))
        return q[:rows] * math.sqrt(columns / rows)

    def steps_back(self, count: int) -> Tensor:
        """R^count [s, s]: planes of two channels, each turned by an angle of its own."""
        turned = self.angles * count
        cos, sin = turned.cos(), turned.sin()
        return torch.block_diag(*torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2))

    # ------------------------------------------------------------------ the parts

    def build(self) -> None:
        self._small_random()
        self._embedding()
        heads = self.config.num_attention_heads
        self._look_back(0, range(1, heads + 1), [1.0] * heads, noted=NOTED)
        self._look_back(1, [(heads + 1) * lag for lag in range(1, heads + 1)], self.strengths.far_weight[:heads])
        last = self.config.layers_of(LayerKind.CSA)[-1]
        self._entries(last)
        self._match(last)
        self._index(last)
        self._copy(last)
        self._head()

    def _small_random(self) -> None:
        noise = self.strengths.noise
        for module in self.model.modules():
            if isinstance(module, Matrix | MatrixStack):
                assert module.weight is not None
                fan_in = module.shape[1]
                module.weight.copy_(self.normal(*module.weight.shape, std=fan_in**-0.5))
        for layer, block in enumerate(self.model.layers):
            assert isinstance(block, Block)
            self._quiet(block, layer)
            for name in ("attn", "ffn"):
                self._hyper(block, name)
            if self.config.kind(layer) is LayerKind.CSA:
                block.attn.attn_sink.fill_(self.strengths.sink)
        streams = self.config.hc_mult
        self.model.hc_head_fn.copy_(self.normal(*self.model.hc_head_fn.shape, std=noise))
        self.model.hc_head_base.fill_(_logit(1 / streams))
        self.model.hc_head_scale.fill_(0.1)

    def _quiet(self, block: Block, layer: int) -> None:
        """Small outputs, an even router and nearly constant gates: what is not part of the circuit whispers, and not
        in the channels of its codes."""
        width = self.config.hidden_size**-0.5
        last = self.config.layers_of(LayerKind.CSA)[-1]
        self.weight(block.attn.wo_b).mul_(0.1)
        for matrix in (block.ffn.experts.w2, block.ffn.shared_experts.w2):
            self.weight(matrix).mul_(0.03)
            if layer < last:
                self.weight(matrix)[..., self.plan.output.start : self.plan.recent[-1].stop, :] = 0.0
        if layer <= last:
            self.weight(block.attn.wo_b)[self.plan.output.start : self.plan.recent[-1].stop] = 0.0
        gate = block.ffn.gate
        gate.weight.copy_(self.normal(*gate.weight.shape, std=width))
        if gate.tid2eid is not None:
            self._hash_table(gate.tid2eid)
        indexer = block.attn.indexer
        for compressor in (block.attn.compressor, None if indexer is None else indexer.compressor):
            if compressor is not None:
                self.weight(compressor.wgate).mul_(self.strengths.noise / width)

    def _hyper(self, block: Block, name: str) -> None:
        """Streams start as one: read their mean, write to all, mix nothing; small random coefficients part them."""
        streams = self.config.hc_mult
        fn, base = getattr(block, f"hc_{name}_fn"), getattr(block, f"hc_{name}_base")
        fn.copy_(self.normal(*fn.shape, std=self.strengths.noise))
        base[:streams] = _logit(1 / streams)
        base[streams : 2 * streams] = 0.0
        base[2 * streams :] = (5.0 * torch.eye(streams)).flatten()
        getattr(block, f"hc_{name}_scale").fill_(0.1)

    def _hash_table(self, table: Tensor) -> None:
        order = torch.rand(table.shape[0], self.config.n_routed_experts, generator=self.random)
        table.copy_(order.argsort(dim=1)[:, : table.shape[1]])

    def _embedding(self) -> None:
        """Constant, code, and the signature's first term. Rare tokens are louder."""
        table, plan = self.weight(self.model.embed), self.plan
        if self.embedding is not None:
            table.copy_(self.embedding)
            self.code = torch.nn.functional.normalize(table[:, plan.recent[0]])
            return
        surprise = -self.frequencies.log2()
        loudness = (surprise / surprise[self.frequencies > 1e-6].mean()).clamp(*self.strengths.loudness)
        loud = (loudness * self.strengths.code_norm).unsqueeze(1)
        self.code = self.directions(plan.code)
        table.zero_()
        table[:, 0] = self.strengths.code_norm
        table[:, plan.recent[0]] = self.code * loud
        table[:, plan.signature] = self.directions(_width(plan.signature)) * loud

    def _look_back(self, layer: int, lags: Sequence[int], strengths: Sequence[float], *, noted: int = 0) -> None:
        """Head h adds the signature of the token `lags[h]` back, turned so many steps; the first `noted` heads also
        note its code."""
        attention, plan = self.attention(layer), self.plan
        size, code = _width(plan.signature), plan.code
        wkv = self.weight(attention.wkv)
        wkv.zero_()
        wkv[:size, plan.signature] = torch.eye(size)
        wkv[size : size + code, plan.recent[0]] = torch.eye(code)
        self._fixed_distances(layer, lags)
        # The kv vector is normed: its rotating part dominates, so the rest comes out this much smaller than it stands.
        scale = self.strengths.look_back_key / math.sqrt(self.config.head_dim) * self.strengths.code_norm
        first = plan.recent[1].start  # notes and signature are neighbours in the residual
        target = slice(first, plan.signature.stop)
        parts: list[tuple[int, slice, slice, Tensor]] = []
        for head, (lag, strength) in enumerate(zip(lags, strengths, strict=True)):
            turned = self.steps_back(lag) * (strength * scale)
            parts.append((head, slice(0, size), plan.signature, turned))
            if head < noted:
                parts.append((head, slice(size, size + code), plan.recent[head + 1], torch.eye(code) * scale))
        self._write(attention, parts, target)

    def _fixed_distances(self, layer: int, lags: Sequence[int]) -> None:
        """Keys are a constant under the rotary phase, head h's query the same `lags[h]` positions back."""
        attention, config = self.attention(layer), self.config
        frequencies = rotation_of(config, layer).frequencies
        amplitude = _sharp_kernel(frequencies).sqrt()
        rope = slice(config.nope_head_dim, config.head_dim)
        wkv = self.weight(attention.wkv)
        wkv[rope, 0] = self.strengths.look_back_key * _interleaved(amplitude, torch.zeros_like(amplitude))
        attention.kv_norm.weight[rope] = self.strengths.look_back_gain
        wq_a = self.weight(attention.wq_a)
        wq_a.mul_(0.02)
        wq_a[0] = 0.0
        wq_a[0, 0] = 1.0  # latent channel 0 carries the constant
        wq_b = self.weight(attention.wq_b).view(config.num_attention_heads, config.head_dim, -1)
        wq_b.mul_(0.02)
        for head, lag in enumerate(lags):
            angle = -frequencies * lag
            wq_b[head, rope, 0] = _interleaved(amplitude * angle.cos(), amplitude * angle.sin())

    def _write(self, attention: Attention, parts: list[tuple[int, slice, slice, Tensor]], target: slice) -> None:
        """For each (head, channels, place, matrix), the head's channels through the matrix to the residual channels
        `place`, which lie in `target`. Each group's latent takes the sum of its heads, `wo_b` adds the groups, and
        nothing else is written to `target`."""
        config = self.config
        rank, groups, size = config.o_lora_rank, config.o_groups, _width(target)
        per_group = config.num_attention_heads // groups
        wo_a = self.weight(attention.wo_a).view(groups, rank, per_group, config.head_dim)
        wo_b = self.weight(attention.wo_b).view(config.hidden_size, groups, rank)
        wo_a[:, :size] = 0.0
        for head, channels, place, matrix in parts:
            latent = slice(place.start - target.start, place.stop - target.start)
            wo_a[head // per_group, latent, head % per_group, channels] = matrix
        wo_b[target] = 0.0
        for group in range(groups):
            wo_b[target, group, :size] = torch.eye(size)

    def _entries(self, layer: int) -> None:
        """The signature before an entry's tokens, and their codes."""
        attention, config, plan = self.attention(layer), self.config, self.plan
        assert attention.compressor is not None
        wkv, ape = self.weight(attention.compressor.wkv), attention.compressor.ape
        wkv.zero_()
        wkv[plan.key, plan.signature] = torch.eye(_width(plan.key))
        self._hold(ape, config.head_dim, plan.key, SLOTS - 1, before=True)
        for slot in range(SLOTS):
            channels = plan.slot(slot)
            wkv[_shifted(channels, config.head_dim), plan.recent[0]] = torch.eye(plan.code)
            self._hold(ape, config.head_dim, channels, slot, before=False)
        # An entry is normed to the length sqrt(head_dim), and so is a head's query.
        attention.compressor.norm.weight.fill_(self.strengths.match_logit / math.sqrt(config.head_dim))

    def _hold(self, ape: Tensor, width: int, channels: slice, token: int, *, before: bool) -> None:
        """Channels hold token number `token` of four: of the four before the entry's own, or of these."""
        chosen, others = self.strengths.slot_bias
        for half in (0, width):
            ape[:, _shifted(channels, half)] = others
        ape[token, _shifted(channels, 0 if before else width)] = chosen

    def _match(self, layer: int) -> None:
        attention, config, plan = self.attention(layer), self.config, self.plan
        size = _width(plan.matched)
        wq_a = self.weight(attention.wq_a)
        wq_a.zero_()
        wq_a[:size, plan.matched] = torch.eye(size)
        wq_b = self.weight(attention.wq_b).view(config.num_attention_heads, config.head_dim, -1)
        wq_b.zero_()  # of a fifth head, too: it looks back in the layers below, and here the sink has all of it
        for head in range(SLOTS):
            wq_b[head, plan.key, plan.in_latent(plan.signature)] = self.steps_back(-head)
            for back in range(head):
                latent = plan.in_latent(plan.recent[back])
                wq_b[head, plan.slot(head - 1 - back), latent] = torch.eye(plan.code)

    def _index(self, layer: int) -> None:
        """The same match in the indexer's channels: projections of the signature and of the codes."""
        attention, config, plan = self.attention(layer), self.config, self.plan
        assert attention.indexer is not None
        compressor, indexer = attention.indexer.compressor, attention.indexer
        signature = self.rows_of_rotation(plan.index_signature, _width(plan.signature))
        code = self.rows_of_rotation(plan.index_code, plan.code)
        keys = slice(0, plan.index_signature)
        slots = [_shifted(slice(0, plan.index_code), keys.stop + i * plan.index_code) for i in range(SLOTS - 1)]
        wkv = self.weight(compressor.wkv)
        wkv.zero_()
        wkv[keys, plan.signature] = signature
        self._hold(compressor.ape, config.index_head_dim, keys, SLOTS - 1, before=True)
        for slot, channels in enumerate(slots):
            wkv[_shifted(channels, config.index_head_dim), plan.recent[0]] = code
            self._hold(compressor.ape, config.index_head_dim, channels, slot, before=False)
        wq_b = self.weight(indexer.wq_b).view(config.index_n_heads, config.index_head_dim, -1)
        wq_b.zero_()
        for head in range(config.index_n_heads):
            place = head % SLOTS
            wq_b[head, keys, plan.in_latent(plan.signature)] = signature @ self.steps_back(-place)
            for back in range(place):
                wq_b[head, slots[place - 1 - back], plan.in_latent(plan.recent[back])] = code
        weights = self.weight(indexer.weights_proj)
        weights.mul_(0.02)
        weights[:, 0] = 1.0

    def _copy(self, layer: int) -> None:
        """The matched slots' tokens to the output channels, loud: the two output matrices share the gain."""
        attention, plan = self.attention(layer), self.plan
        inner, outer = self.strengths.copy_gain
        copy = torch.eye(plan.code) * inner
        self._write(attention, [(slot, plan.slot(slot), plan.output, copy) for slot in range(SLOTS)], plan.output)
        rows = self.weight(attention.wo_b)
        rows[plan.output] *= outer

    def _head(self) -> None:
        """Logits: the unigram distribution from the constant, and the copied code from the output channels."""
        head, plan = self.weight(self.model.head), self.plan
        head.mul_(0.02)
        # After the final norm the constant is about 6, and a copied code about sqrt(d).
        head[:, 0] = (self.frequencies.log() - self.frequencies.log().mean()).clamp(-6, 6) / 6
        head[:, plan.output] = self.code * (self.strengths.copy_logit / math.sqrt(self.config.hidden_size))

    # ------------------------------------------------------------------ access

    def attention(self, layer: int) -> Attention:
        block = self.model.layers[layer]
        assert isinstance(block, Block)
        return block.attn

    @staticmethod
    def weight(module: Matrix | MatrixStack) -> Tensor:
        assert module.weight is not None
        return module.weight


def _width(channels: slice) -> int:
    return int(channels.stop - channels.start)


def _shifted(channels: slice, by: int) -> slice:
    return slice(channels.start + by, channels.stop + by)


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """first[0], second[0], first[1], ...: rotary pairs."""
    return torch.stack([first, second], dim=1).flatten()


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _sharp_kernel(frequencies: Tensor, reach: int = 127, steps: int = 4000) -> Tensor:
    """Weights a >= 0, sum 1, that make sum_i a_i cos(f_i * delta) fall off as fast as it can for 0 < |delta| <= reach:
    the largest value at a wrong distance is minimised (multiplicative weights on both sides of the game)."""
    deltas = torch.arange(1, reach + 1, dtype=torch.float64)
    values = torch.cos(deltas.unsqueeze(1) * frequencies.double().unsqueeze(0))
    ours = torch.full((len(frequencies),), 1 / len(frequencies), dtype=torch.float64)
    theirs = torch.full((reach,), 1 / reach, dtype=torch.float64)
    mean = torch.zeros_like(ours)
    for _ in range(steps):
        ours = ours * torch.exp(-0.05 * (theirs @ values))
        ours /= ours.sum()
        theirs = theirs * torch.exp(0.05 * (values @ ours))
        theirs /= theirs.sum()
        mean += ours
    return (mean / mean.sum()).float()
