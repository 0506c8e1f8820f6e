"""Attention layers whose entries hold four tokens each, in slots of their own (docs/convert.md, "Beyond the window").

Channels of the wide head; the slots lie where other layers have filler:

    [values: G * c][flag][keys of 4 slots: 4c][values of 4 slots: 4c][rotary: R]

No filler is needed here. V4 norms with an epsilon, and vectors that are small beside it are all divided by its root.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foveal.config import CSA_RATIO, ModelConfig
from foveal.convert.errors import ConvertError
from foveal.convert.fade import fit_fade
from foveal.convert.layout import RAW_WINDOW, Layout
from foveal.convert.rotary import mix_pairs
from foveal.convert.source import LayerWeights

_SHARE = 1e-3
"""The mean square of a vector before its norm, in parts of the norm's epsilon. The norm wanders by half of it."""
_PARTS = 4
"""So many parts of a vector share that."""
_SHUT = -1e4
"""A logit whose exponential is 0."""
_OTHERWISE = -100.0
"""The same, beside a logit of 0; chosen beside `_SHUT` ones."""
_HIDDEN = -60.0
"""What the source's own heads have on entries that hold no raw token."""
_BLOCK = 128
"""Rows that share a scale in FP8."""


@dataclass(frozen=True)
class Slots:
    """What a layer's slots and the m heads that read them have learned, in fp32 and in the source's terms.

    `heads`: the source's heads that look things up. `key`, `value` [4, c, d]; `query` [4, m, c, d]; `output`
    [4, m, d, c]; `offset` [4, m, d]: a logit on all entries; `sink` [4, m]; `constant` [d]: the direction along which
    the layer's input is nearly 1.
    """

    heads: tuple[int, ...]
    key: Tensor
    value: Tensor
    query: Tensor
    output: Tensor
    offset: Tensor
    sink: Tensor
    constant: Tensor


@dataclass(frozen=True)
class PackedLayout:
    """Where a packed layer's channels lie in the head of `base`. Raises `ConvertError` when they do not fit."""

    base: Layout

    def __post_init__(self) -> None:
        s = self.base.shape
        if not len(self.base.free_pairs()):
            raise ConvertError(
                f"packed entries need rotary pairs that carry no key, and with {s.groups} key-value groups there are "
                "none; they are for models with 2 or 3"
            )
        if self.slot_values.stop > self.base.filler.stop:
            raise ConvertError(
                f"packed entries need a hidden size above 8 times the head's, {8 * s.head_dim}; it is {s.hidden_size}"
            )

    @property
    def flag(self) -> int:
        """The channel in which entries of four tokens have a constant, and entry 0 nothing."""
        return self.base.filler.start

    @property
    def slot_keys(self) -> slice:
        """The slots' keys, side by side; in blocks of 128 of their own where there is room."""
        size, aligned = CSA_RATIO * self.base.shape.head_dim, -(-(self.flag + 1) // _BLOCK) * _BLOCK
        start = aligned if aligned + 2 * size <= self.base.filler.stop else self.flag + 1
        return slice(start, start + size)

    @property
    def slot_values(self) -> slice:
        """The slots' values, side by side."""
        start = self.slot_keys.stop
        return slice(start, start + CSA_RATIO * self.base.shape.head_dim)

    def slot(self, part: slice, number: int) -> slice:
        """Channels of one slot of `slot_keys` or `slot_values`."""
        c = self.base.shape.head_dim
        return slice(part.start + number * c, part.start + (number + 1) * c)

    def fade_channels(self) -> Tensor:
        """First channels of the pairs that carry the fade: int64 [P]."""
        return self.base.filler.stop + 2 * self.base.free_pairs()

    def config(self, slots: Mapping[int, Slots], **stored: Any) -> ModelConfig:
        """The config of a model with packed entries in the layers of `slots`; all its entries are seen."""
        config = self.base.config(RAW_WINDOW, **stored)
        heads = self.base.shape.heads + CSA_RATIO * max(len(one.heads) for one in slots.values())
        ratios = tuple(CSA_RATIO if layer in slots else ratio for layer, ratio in enumerate(config.compress_ratios))
        return config.replace(
            num_attention_heads=heads,
            o_groups=heads,
            compress_ratios=ratios,
            index_topk=-(-config.max_position_embeddings // CSA_RATIO),
        )


def packed_attention(
    layer: LayerWeights, moment: Tensor, layout: PackedLayout, config: ModelConfig, slots: Slots
) -> Iterator[tuple[str, Tensor]]:
    """The weights of a layer's attention, fp32. `moment`: E x x^T of its input [d, d]."""
    built = _Built(layer, moment, layout, config, slots)
    d, width = config.hidden_size, config.head_dim
    yield "attn_norm.weight", torch.ones(d)
    yield "attn.wq_a.weight", torch.eye(d)
    yield "attn.q_norm.weight", torch.ones(d)
    yield "attn.wq_b.weight", built.queries().flatten(0, 1)
    wkv, kv_norm = built.raw()
    yield "attn.wkv.weight", wkv
    yield "attn.kv_norm.weight", kv_norm
    yield "attn.attn_sink", built.sinks()
    yield "attn.wo_a.weight", built.chosen_values().flatten(0, 1)
    yield "attn.wo_b.weight", built.outputs().flatten(1)
    content, norm = built.entries()
    yield "attn.compressor.ape", built.choice().flatten(1)
    yield "attn.compressor.wkv.weight", content.flatten(0, 1)
    yield "attn.compressor.wgate.weight", torch.zeros(2 * width, d)
    yield "attn.compressor.norm.weight", norm
    yield from _blind_indexer(config)


def _blind_indexer(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """All entries score 0, and all are taken."""
    d, width = config.hidden_size, config.index_head_dim
    yield "attn.indexer.wq_b.weight", torch.zeros(config.index_n_heads * width, config.q_lora_rank)
    yield "attn.indexer.weights_proj.weight", torch.zeros(config.index_n_heads, d)
    yield "attn.indexer.compressor.ape", torch.zeros(CSA_RATIO, 2 * width)
    yield "attn.indexer.compressor.wkv.weight", torch.zeros(2 * width, d)
    yield "attn.indexer.compressor.wgate.weight", torch.zeros(2 * width, d)
    yield "attn.indexer.compressor.norm.weight", torch.ones(width)


class _Built:
    """The matrices of one layer.

    A part of queries is scaled by a, what it meets in the key-value vector by b, and both end up divided by the root of
    epsilon; the norm weight n makes up for it: a b n / eps = width^1/2 for logits as they were.
    """

    def __init__(
        self, layer: LayerWeights, moment: Tensor, layout: PackedLayout, config: ModelConfig, slots: Slots
    ) -> None:
        self.layout, self.config, self.slots, self.moment = layout, config, slots, moment
        self.shape = layout.base.shape
        self.width, self.heads, self.own = config.head_dim, config.num_attention_heads, self.shape.heads
        query, key, self.value = layer.folded()
        self.output = layer.o.unflatten(1, (self.own, -1))
        mixed = mix_pairs(query, key, moment, self.shape)
        self.query, self.key, self.channels = mixed.query, mixed.key, layout.base.key_channels()
        self.fade = fit_fade(layout.base.frequencies[layout.base.free_pairs()], self.shape.context)
        self.amplitude = self.fade.norm(dim=0).sqrt()
        """The fade's share in queries, pair by pair; entries have the rest."""

    def _slot_heads(self) -> Iterator[tuple[int, int, int]]:
        """The number of each slot head, its slot, and the place of the source's head in `slots.heads`."""
        m = len(self.slots.heads)
        for slot in range(CSA_RATIO):
            for place in range(m):
                yield self.own + slot * m + place, slot, place

    def _small(self, rows: Tensor) -> float:
        """The factor that makes `rows` @ x, [..., k, d], small beside epsilon."""
        energy = torch.einsum("...ad,de,...ae->...", rows.double(), self.moment.double(), rows.double())
        wanted = _SHARE / _PARTS * self.width * self.config.rms_norm_eps
        return math.sqrt(wanted / max(float(energy.max()), 1e-30))

    def _met(self, rows: Tensor, query_scale: float, gain: float = 1.0) -> tuple[float, float]:
        """Scale and norm weight of `rows` that a part of queries, itself scaled, meets: logits are `gain` times what
        the product is."""
        return _exact(self._small(rows), self.config.rms_norm_eps * math.sqrt(self.width) * gain / query_scale)

    def _taken(self, rows: Tensor) -> tuple[float, float]:
        """Scale and norm weight of `rows` that are only taken as values."""
        return _exact(self._small(rows), math.sqrt(self.config.rms_norm_eps))

    # ------------------------------------------------------------------ queries

    @cached_property
    def _query_scales(self) -> _Scales:
        """Of rotary keys, slots' keys, the flag and the fade."""
        constant = self.slots.constant
        return _Scales(
            self._small(self.query),
            self._small(self.slots.query),
            self._small(_HIDDEN * constant[None]),
            self._small(self.amplitude[:, None] * constant),
        )

    def queries(self) -> Tensor:
        """[heads, width, d]"""
        scales, constant = self._query_scales, self.slots.constant
        made = torch.zeros(self.heads, self.width, self.config.hidden_size)
        faded = self.layout.fade_channels()
        made[: self.own, self.channels] = scales.key * self.query
        made[: self.own, self.layout.flag] = scales.flag * _HIDDEN * constant
        made[: self.own, faded] = scales.fade * self.amplitude[:, None] * constant
        for head, slot, place in self._slot_heads():
            made[head, self.channels] = scales.key * self.query[self.slots.heads[place]]
            channels = self.layout.slot(self.layout.slot_keys, slot)
            made[head, channels] = scales.slot * self.slots.query[slot, place]
            made[head, self.layout.flag] = scales.flag * self.slots.offset[slot, place]
            made[head, faded] = scales.fade * self.amplitude[:, None] * constant
        return made

    def sinks(self) -> Tensor:
        """[heads]"""
        made = torch.full((self.heads,), _SHUT)
        for head, slot, place in self._slot_heads():
            made[head] = self.slots.sink[slot, place]
        return made

    # ------------------------------------------------------------------ keys and values

    def raw(self) -> tuple[Tensor, Tensor]:
        """The rows of raw tokens [width, d], and the weight of their norm [width]."""
        made, norm = torch.zeros(self.width, self.config.hidden_size), torch.zeros(self.width)
        scale, norm[self.layout.base.value] = self._taken(self.value)
        made[self.layout.base.value] = scale * self.value
        scale, norm[self.channels] = self._met(self.key, self._query_scales.key, self.shape.head_dim**-0.5)
        made[self.channels] = scale * self.key
        return made, norm

    def entries(self) -> tuple[Tensor, Tensor]:
        """The rows of entries [2, width, d], of the window before and of the own one, and the weight of their norm."""
        made = torch.zeros(2, self.width, self.config.hidden_size)
        before, own = made
        scales, slots, layout = self._query_scales, self.slots, self.layout
        own[:], norm = self.raw()  # seen in entry 0 alone
        scale, norm[layout.flag] = self._met(slots.constant[None], scales.flag)
        before[layout.flag] = scale * slots.constant
        scale, norm[layout.slot_keys] = self._met(slots.key, scales.slot, self.shape.head_dim**-0.5)
        before[layout.slot_keys] = scale * slots.key.flatten(0, 1)
        scale, norm[layout.slot_values] = self._taken(slots.value)
        before[layout.slot_values] = scale * slots.value.flatten(0, 1)
        repeated = slots.constant.expand(2 * len(self.amplitude), -1)
        scale, weight = self._met(repeated, scales.fade)
        for part, coefficients in enumerate(self.fade):
            channels = layout.fade_channels() + part
            own[channels], norm[channels] = scale * slots.constant, weight * coefficients / self.amplitude
        return made, norm

    def choice(self) -> Tensor:
        """Which token of the window before (half 0) or of the own one (half 1) a channel takes, as terms of its gate
        [4, 2, width]."""
        layout = self.layout
        made = torch.full((CSA_RATIO, 2, self.width), _SHUT)
        for channels in (torch.arange(layout.base.value.start, layout.base.value.stop), self.channels):
            made[:, 0, channels] = 0.0  # nothing, once there is a window before
            made[0, 1, channels] = _OTHERWISE
        made[0, 0, layout.flag] = 0.0
        for slot in range(CSA_RATIO):
            made[slot, 0, layout.slot(layout.slot_keys, slot)] = 0.0
            made[slot, 0, layout.slot(layout.slot_values, slot)] = 0.0
        made[0, 1, layout.fade_channels()] = 0.0
        made[0, 1, layout.fade_channels() + 1] = 0.0
        return made

    # ------------------------------------------------------------------ output

    def chosen_values(self) -> Tensor:
        """Each head its own group of the output: the channels it takes, [heads, c, width]."""
        s = self.shape
        made = torch.zeros(self.heads, s.head_dim, self.width)
        for head in range(self.own):
            first = self.layout.base.value.start + head // s.heads_per_group * s.head_dim
            made[head, :, first : first + s.head_dim] = torch.eye(s.head_dim)
        for head, slot, _ in self._slot_heads():
            made[head, :, self.layout.slot(self.layout.slot_values, slot)] = torch.eye(s.head_dim)
        return made

    def outputs(self) -> Tensor:
        """[d, heads, c]"""
        made = torch.zeros(self.config.hidden_size, self.heads, self.shape.head_dim)
        made[:, : self.own] = self.output
        for head, slot, place in self._slot_heads():
            made[:, head] = self.slots.output[slot, place]
        return made


@dataclass(frozen=True)
class _Scales:
    """Factors of the parts of a query."""

    key: float
    slot: float
    flag: float
    fade: float


def _exact(scale: float, product: float) -> tuple[float, float]:
    """About `scale`, and the power of two that makes `product` of it: BF16 holds that exactly."""
    norm = 2.0 ** round(math.log2(product / scale))
    return product / norm, norm
