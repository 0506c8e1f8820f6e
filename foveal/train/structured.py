"""A structured (mimetic) start: ordinary V4 tensors, set so that recall works from step 0 and training refines it.

From random weights a V4 of this size learns no recall within millions of tokens. The circuit it would have to find is
known, and every part of it is something V4 can represent exactly, so it is written down here:

1. *Token code.* The embedding of token x holds a constant, a random code E(x) (rare tokens louder), and the first term
   of the signature below.
2. *Signature.* Layer 0's heads each look one fixed distance back (a rotary phase against a constant key) and add
   R_k E(x[t-k]), a different random rotation for each distance k. Layer 1 does the same with whole signatures, farther
   back. So every token ends up with a linear fingerprint of the two dozen tokens before and including it.
3. *Slots.* In CSA layers the position bias `ape` makes each group of an entry's channels hold one token. Key group j
   holds the signature at position 4s - 1 + j, value group j the code of the token at 4s + j, which followed it.
4. *Match and copy.* In the last CSA layer attention head j compares its own signature with key group j and carries
   value group j to output channels that the LM head reads. The indexer has the same four slots. (CSA layers below it
   match in the same way and copy nothing: training may find a use for them.)
5. *One race between the heads.* Each head has a softmax of its own, so four heads would each name a winner. The sink
   therefore stands *above* a perfect match: then every weight is near exp(logit - sink), the heads share their
   denominator, and their sum is one softmax over all slots of all entries. What comes out is tiny for a weak match, so
   the copy is written very loud; the final norm brings loud and tiny to the same size, and only proportions remain.

Everything else starts small and random. All of it is trained afterwards; nothing here exists at run time. The groups'
widths are in `Plan`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.config import LayerKind, ModelConfig
from foveal.model.attention import Attention
from foveal.model.linear import Matrix, MatrixStack
from foveal.model.rope import rotation_of
from foveal.model.transformer import Block, Transformer

SLOTS = 4
NEAR_LAGS = (1, 2, 3, 4)
"""Distances layer 0 looks back, one a head."""
FAR_LAGS = (5, 10, 15, 20)
"""Distances at which layer 1 picks up layer 0's signatures of five tokens."""


@dataclass(frozen=True)
class Plan:
    """Where things stand in the residual (width d) and in a CSA entry's channels that do not rotate."""

    code: slice
    output: slice
    near: slice
    far: slice
    key: int
    value: int
    index: int

    @classmethod
    def of(cls, config: ModelConfig) -> Plan:
        """Of d, a twelfth for the output, a third for each half of the signature, the rest for the constant (channel 0)
        and the code. Of a slot's share of an entry, the output's width for the value, the rest for the key."""
        d = config.hidden_size
        value = d // 12
        key = config.nope_head_dim // SLOTS - value
        index = (config.index_head_dim - config.qk_rope_head_dim) // SLOTS
        code = d - value - 2 * (d // 3)
        end = code + value
        middle = end + d // 3
        return cls(slice(1, code), slice(code, end), slice(end, middle), slice(middle, d), key, value, index)

    @property
    def signature(self) -> slice:
        """Near and far signature together."""
        return slice(self.near.start, self.far.stop)

    def key_channels(self, slot: int) -> slice:
        return slice(slot * self.key, (slot + 1) * self.key)

    def value_channels(self, slot: int) -> slice:
        first = SLOTS * self.key + slot * self.value
        return slice(first, first + self.value)


@dataclass(frozen=True)
class Strengths:
    """The few numbers that set how sharp the circuit starts."""

    code_norm: float = 4.0
    far_weight: tuple[float, ...] = (0.8, 0.7, 0.6, 0.5)
    near_weight: tuple[float, ...] = (0.95, 0.9, 0.85, 0.8)
    mix: tuple[float, float] = (1.0, 0.9)
    loudness: tuple[float, float] = (0.35, 1.3)
    look_back_gain: float = 2.5
    match_logit: float = 20.0
    sink: float = 24.0
    slot_bias: tuple[float, float] = (4.0, -3.0)
    copy_gain: tuple[float, float, float] = (8.0, 50.0, 50.0)
    copy_logit: float = 30.0
    noise: float = 0.01


def structured_start(
    model: Transformer,
    frequencies: Tensor,
    *,
    blanks: Sequence[int] = (),
    seed: int = 0,
    strengths: Strengths | None = None,
) -> None:
    """Set all parameters of `model`.

    `frequencies` [V] are the tokens' relative frequencies in the training data (rare tokens get a louder code, and the
    LM head starts as the unigram distribution); `blanks` are token ids without a code. Raises
    `ValueError` when the shape cannot hold the circuit.
    """
    builder = _Builder(model, frequencies, seed, strengths or Strengths())
    with torch.no_grad():
        builder.build()
        for blank in blanks:
            builder.weight(model.embed)[blank, 1:] = 0.0


class _Builder:
    def __init__(self, model: Transformer, frequencies: Tensor, seed: int, strengths: Strengths) -> None:
        self.model, self.config, self.strengths = model, model.config, strengths
        self.plan = Plan.of(self.config)
        self.random = torch.Generator().manual_seed(seed)
        self.frequencies = (frequencies.double() + 1e-7).float()
        self.frequencies /= self.frequencies.sum()
        config = self.config
        two_windows = [config.kind(i) for i in (0, 1)] == [LayerKind.SLIDING] * 2
        if not two_windows or config.num_attention_heads != SLOTS or config.o_groups not in (1, 2, 4):
            raise ValueError("the structured start needs 4 heads and two window-only layers at the bottom")
        needed = self.width(self.plan.signature)
        if config.q_lora_rank < needed or config.o_lora_rank < needed // 2 or self.plan.key < 8:
            raise ValueError(
                f"the structured start needs q_lora_rank >= {needed}, o_lora_rank >= {needed // 2}, "
                f"and room for keys in an entry"
            )

    # ------------------------------------------------------------------ random pieces

    def normal(self, *shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=self.random) * std

    def orthogonal(self, rows: int, columns: int) -> Tensor:
        """A random matrix with orthonormal rows or columns, whichever are fewer."""
        tall = torch.randn(max(rows, columns), min(rows, columns), generator=self.random)
        q, r = torch.linalg.qr(tall)
        q = q * torch.sign(torch.diagonal(r))
        return q if rows >= columns else q.T

    # ------------------------------------------------------------------ the parts

    def build(self) -> None:
        self._small_random()
        self._embedding()
        self._look_back(0, NEAR_LAGS, self.strengths.near_weight, self.plan.code, self.plan.near)
        self._look_back(1, FAR_LAGS, self.strengths.far_weight, self.plan.near, self.plan.far)
        layers = self.config.layers_of(LayerKind.CSA)
        reader = self.orthogonal(self.plan.value, self.width(self.plan.code))
        for layer in layers:
            self._match(layer, reader)
        self._copy(layers[-1])
        self._head(reader)

    @staticmethod
    def width(channels: slice) -> int:
        return int(channels.stop - channels.start)

    def _small_random(self) -> None:
        noise = self.strengths.noise
        for module in self.model.modules():
            if isinstance(module, Matrix | MatrixStack):
                assert module.weight is not None
                fan_in = module.shape[1]
                module.weight.copy_(self.normal(*module.weight.shape, std=fan_in**-0.5))
        for layer, block in enumerate(self.model.layers):
            assert isinstance(block, Block)
            self._quiet(block)
            for name in ("attn", "ffn"):
                self._hyper(block, name)
            if self.config.kind(layer) is LayerKind.CSA:
                block.attn.attn_sink.fill_(self.strengths.sink)
        streams = self.config.hc_mult
        self.model.hc_head_fn.copy_(self.normal(*self.model.hc_head_fn.shape, std=noise))
        self.model.hc_head_base.fill_(_logit(1 / streams))
        self.model.hc_head_scale.fill_(0.1)

    def _quiet(self, block: Block) -> None:
        """Small outputs, an even router and nearly constant gates: what is not part of the circuit whispers."""
        width = self.config.hidden_size**-0.5
        self.weight(block.attn.wo_b).mul_(0.1)
        for matrix in (block.ffn.experts.w2, block.ffn.shared_experts.w2):
            self.weight(matrix).mul_(0.03)
        for matrix in (block.attn.wo_b, block.ffn.experts.w2, block.ffn.shared_experts.w2):
            self.weight(matrix)[..., self.plan.output, :] = 0.0
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
        """Constant, code, and the code in the signature (distance 0). Rare tokens are up to about twice as loud."""
        table, plan = self.weight(self.model.embed), self.plan
        surprise = -self.frequencies.log2()
        loudness = (surprise / surprise[self.frequencies > 1e-6].mean()).clamp(*self.strengths.loudness)
        code = self.normal(self.config.vocab_size, self.width(plan.code), std=1.0)
        self.code = code / code.norm(dim=1, keepdim=True)
        loud = self.code * (loudness * self.strengths.code_norm).unsqueeze(1)
        table.zero_()
        table[:, 0] = self.strengths.code_norm
        table[:, plan.code] = loud
        table[:, plan.near] = loud @ self.orthogonal(self.width(plan.near), self.width(plan.code)).T

    def _look_back(
        self, layer: int, lags: tuple[int, ...], strengths: tuple[float, ...], source: slice, target: slice
    ) -> None:
        """Head h attends to the token `lags[h]` back and adds a random rotation of its `source` to `target`."""
        attention, config = self.attention(layer), self.config
        frequencies = rotation_of(config, layer).frequencies
        amplitude = _sharp_kernel(frequencies).sqrt()
        rope = slice(config.nope_head_dim, config.head_dim)
        key = torch.stack([amplitude, torch.zeros_like(amplitude)], dim=1).flatten()
        wkv, width = self.weight(attention.wkv), self.width(source)
        wkv.mul_(0.02)
        wkv[:width] = 0.0
        wkv[:width, source] = torch.eye(width)
        wkv[rope] = 0.0
        wkv[rope, 0] = 2.0 * key
        attention.kv_norm.weight[rope] = self.strengths.look_back_gain
        self._constant_latent(attention)
        wq_b = self.weight(attention.wq_b).view(config.num_attention_heads, config.head_dim, -1)
        wq_b.mul_(0.02)
        for head, lag in enumerate(lags):
            angle = -frequencies * lag
            wq_b[head, rope, 0] = torch.stack([amplitude * angle.cos(), amplitude * angle.sin()], dim=1).flatten()
        # The kv vector is normed: its rotating part dominates, so the rest comes out this much smaller than it stands.
        shrink = 2.0 / math.sqrt(config.head_dim)
        sources = {}
        for head, strength in enumerate(strengths):
            turned = self.orthogonal(self.width(target), width)
            sources[head] = (slice(0, width), turned * strength * shrink * self.strengths.code_norm)
        self._write(attention, sources, target)

    def _constant_latent(self, attention: Attention) -> None:
        """Latent channel 0 carries the constant; the others stay small."""
        wq_a = self.weight(attention.wq_a)
        wq_a.mul_(0.02)
        wq_a[0] = 0.0
        wq_a[0, 0] = 1.0

    def _write(
        self, attention: Attention, sources: dict[int, tuple[slice, Tensor]], target: slice, *, alone: bool = False
    ) -> None:
        """Head h's channels -> residual channels `target`, through the grouped output: each group's latent takes the
        sum of its heads, and `wo_b` adds the groups. With `alone` nothing else enters those latent channels."""
        config = self.config
        rank, groups = config.o_lora_rank, config.o_groups
        per_group = config.num_attention_heads // groups
        wo_a = self.weight(attention.wo_a).view(groups, rank, per_group, config.head_dim)
        wo_b = self.weight(attention.wo_b).view(config.hidden_size, groups, rank)
        wo_a.mul_(0.02)
        if alone:
            wo_a[:, : self.width(target)] = 0.0
        for head, (channels, matrix) in sources.items():
            wo_a[head // per_group, :, head % per_group, channels] = 0.0
            wo_a[head // per_group, : matrix.shape[0], head % per_group, channels] = matrix
        wo_b[target] = 0.0
        for group in range(groups):
            wo_b[target, group, : self.width(target)] = torch.eye(self.width(target))

    def _match(self, layer: int, reader: Tensor) -> None:
        """Slots, matching heads and the indexer."""
        attention, config, plan = self.attention(layer), self.config, self.plan
        assert attention.compressor is not None and attention.indexer is not None
        scale = torch.tensor(self.strengths.mix).repeat_interleave(self.width(plan.near))
        projections = [self.orthogonal(plan.key, self.width(plan.signature)) * scale for _ in range(SLOTS)]
        wkv = self.weight(attention.compressor.wkv)
        wkv.mul_(0.02)
        wkv[:, 0] = 0.0
        for slot in range(SLOTS):
            keys, values = plan.key_channels(slot), plan.value_channels(slot)
            half = 0 if slot == 0 else config.head_dim
            self._put(wkv, half, keys, plan.signature, projections[slot])
            self._put(wkv, config.head_dim, values, plan.code, reader)
            self._bias(attention.compressor.ape, config.head_dim, keys, (slot - 1) % SLOTS, first_half=slot == 0)
            self._bias(attention.compressor.ape, config.head_dim, values, slot, first_half=False)
            attention.compressor.norm.weight[keys] = self.strengths.match_logit / math.sqrt(plan.key)
        wq_a = self.weight(attention.wq_a)
        wq_a.mul_(0.02)
        size = self.width(plan.signature)
        wq_a[:size] = 0.0
        wq_a[:size, plan.signature] = torch.eye(size)
        wq_b = self.weight(attention.wq_b).view(config.num_attention_heads, config.head_dim, -1)
        wq_b.mul_(0.02)
        wq_b[:, SLOTS * plan.key :] = 0.0
        for head in range(SLOTS):
            wq_b[head, plan.key_channels(head), :size] = projections[head]
        self._index(attention)

    def _copy(self, layer: int) -> None:
        """The matched slots' tokens to the output channels, loud: the gain is shared between the entries' norm and the
        two output matrices, so that none of them strains its format."""
        attention, plan = self.attention(layer), self.plan
        assert attention.compressor is not None
        entry, inner, outer = self.strengths.copy_gain
        for slot in range(SLOTS):
            attention.compressor.norm.weight[plan.value_channels(slot)] = entry
        sources = {head: (plan.value_channels(head), inner * torch.eye(plan.value)) for head in range(SLOTS)}
        self._write(attention, sources, plan.output, alone=True)
        rows = self.weight(attention.wo_b)
        rows[plan.output] *= outer

    def _index(self, attention: Attention) -> None:
        config, plan = self.config, self.plan
        assert attention.indexer is not None
        compressor, indexer = attention.indexer.compressor, attention.indexer
        size = self.width(plan.signature)
        wkv = self.weight(compressor.wkv)
        wkv.mul_(0.02)
        wq_b = self.weight(indexer.wq_b).view(config.index_n_heads, config.index_head_dim, -1)
        wq_b.mul_(0.02)
        for slot in range(SLOTS):
            channels = slice(slot * plan.index, (slot + 1) * plan.index)
            projection = self.orthogonal(plan.index, size)
            half = 0 if slot == 0 else config.index_head_dim
            self._put(wkv, half, channels, plan.signature, projection)
            self._bias(compressor.ape, config.index_head_dim, channels, (slot - 1) % SLOTS, first_half=slot == 0)
            for head in range(slot, config.index_n_heads, SLOTS):
                wq_b[head, channels, :size] = projection
        weights = self.weight(indexer.weights_proj)
        weights.mul_(0.02)
        weights[:, 0] = 1.0

    @staticmethod
    def _put(wkv: Tensor, half: int, channels: slice, source: slice, matrix: Tensor) -> None:
        """Rows `channels` of one half of a compressor's projection read `source` through `matrix`, and nothing else."""
        rows = slice(half + channels.start, half + channels.stop)
        wkv[rows] = 0.0
        wkv[rows, source] = matrix

    def _bias(self, ape: Tensor, width: int, channels: slice, token: int, *, first_half: bool) -> None:
        """Channels hold the window's token number `token`: of the window before (first half) or of this one."""
        chosen, others = self.strengths.slot_bias
        for half in (0, 1):
            ape[:, half * width + channels.start : half * width + channels.stop] = others
        start = 0 if first_half else width
        ape[token, start + channels.start : start + channels.stop] = chosen

    def _head(self, reader: Tensor) -> None:
        """Logits: the unigram distribution from the constant, and the copied code from the output channels."""
        head, plan = self.weight(self.model.head), self.plan
        head.mul_(0.02)
        # After the final norm the constant is about 6, and a copied code about 0.7 sqrt(d), the rest being signature.
        head[:, 0] = (self.frequencies.log() - self.frequencies.log().mean()).clamp(-6, 6) / 6
        codes = self.code @ reader.T
        scale = self.strengths.copy_logit / math.sqrt(self.config.hidden_size)
        head[:, plan.output] = codes / codes.norm(dim=1, keepdim=True) * scale

    # ------------------------------------------------------------------ access

    def attention(self, layer: int) -> Attention:
        block = self.model.layers[layer]
        assert isinstance(block, Block)
        return block.attn

    @staticmethod
    def weight(module: Matrix | MatrixStack) -> Tensor:
        assert module.weight is not None
        return module.weight


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
