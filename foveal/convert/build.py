"""The weights of a converted model, under their official names (docs/convert.md derives every number).

Nothing is trained. Queries and the key-value vector get filler channels that hold the input
itself, whose length RMSNorm has just made constant; so V4's norms over whole heads change nothing that matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.config import ModelConfig
from foveal.convert.layout import Layout
from foveal.convert.packed import PackedLayout, Slots, packed_attention
from foveal.convert.rotary import mix_pairs
from foveal.convert.source import LayerWeights, Source

_VALUE_SHARE, _KEY_SHARE = 1e-4, 1e-6
"""The part that values, and keys or queries, have in the square of a normed vector, the filler having the rest: what
the norm can wander by, at most. Values share blocks of 128 rows with filler and must not vanish beside it in FP8."""
_OPEN = 40.0
"""A logit whose sigmoid is 1 in fp32."""
_SHUT = -1e4
"""A logit whose exponential is 0."""


def converted_weights(
    source: Source, moments: Tensor, layout: Layout, config: ModelConfig, slots: Mapping[int, Slots] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the converted model in fp32, layer by layer. `moments`: E x x^T of each layer's
    attention input [layers, d, d]; `slots`: of the layers with packed entries, as `config` says (`PackedLayout`)."""
    d = source.shape.hidden_size
    embed = source.tensor("embed")
    yield "embed.weight", embed
    yield "norm.weight", source.tensor("norm")
    yield "head.weight", source.tensor("head")
    yield "hc_head_fn", torch.zeros(1, d)
    yield "hc_head_base", torch.full((1,), _OPEN)
    yield "hc_head_scale", torch.ones(1)
    for index in range(source.shape.layers):
        layer = source.layer(index)
        prefix = f"layers.{index}."
        for name, weight in _streams(d):
            yield prefix + name, weight
        if slots is not None and index in slots:
            attention = packed_attention(layer, moments[index], PackedLayout(layout), config, slots[index])
        else:
            attention = _attention(layer, moments[index], layout, config, index)
        for name, weight in attention:
            yield prefix + name, weight
        for name, weight in _feed_forward(layer, config):
            yield prefix + name, weight


def _streams(d: int) -> Iterator[tuple[str, Tensor]]:
    """One residual stream, read and written with weight 1."""
    for part in ("attn", "ffn"):
        yield f"hc_{part}_fn", torch.zeros(3, d)
        yield f"hc_{part}_base", torch.tensor([_OPEN, 0.0, 0.0])
        yield f"hc_{part}_scale", torch.ones(3)


def _attention(
    layer: LayerWeights, moment: Tensor, layout: Layout, config: ModelConfig, index: int
) -> Iterator[tuple[str, Tensor]]:
    s, d, width = layout.shape, layout.shape.hidden_size, layout.width
    query, key, value = layer.folded()
    mixed = mix_pairs(query, key, moment, s)
    scales = _Scales(mixed.query, mixed.key, value, moment, s.head_dim, width)
    filler, channels, heads = torch.eye(d), layout.key_channels(), config.num_attention_heads
    wq_b = torch.zeros(heads, width, d)  # heads beyond the source's read slots, in other layers
    wq_b[: s.heads, layout.filler] = filler
    wq_b[: s.heads, channels] = scales.query * mixed.query
    wkv = torch.zeros(width, d)
    wkv[layout.value], wkv[layout.filler], wkv[channels] = scales.value * value, filler, scales.key * mixed.key
    kv_norm = torch.zeros(width)
    kv_norm[layout.value], kv_norm[channels] = scales.value_norm, scales.key_norm
    yield "attn_norm.weight", torch.ones(d)
    yield "attn.wq_a.weight", filler
    yield "attn.q_norm.weight", torch.ones(d)
    yield "attn.wq_b.weight", wq_b.flatten(0, 1)
    yield "attn.wkv.weight", wkv
    yield "attn.kv_norm.weight", kv_norm
    yield "attn.attn_sink", torch.full((heads,), _SHUT)
    yield "attn.wo_a.weight", _chosen_values(layout, heads).flatten(0, 1)
    yield "attn.wo_b.weight", F.pad(layer.o, (0, (heads - s.heads) * s.head_dim))
    if config.compress_ratios[index]:
        yield from _first_token_entries(wkv, kv_norm, config.compress_ratios[index])


class _Scales:
    """Factors on rows, and the norm weights that undo them; the norm weights are powers of two."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, moment: Tensor, head_dim: int, width: int) -> None:
        d = len(moment)
        q, k, v = _energy(query.flatten(0, 1), moment) / len(query), _energy(key, moment), _energy(value, moment)
        kv_length = math.sqrt(d * (1 + _VALUE_SHARE + _KEY_SHARE))
        self.value_norm = _power_of_two(kv_length / math.sqrt(width * _VALUE_SHARE * d / v))
        self.value = kv_length / (math.sqrt(width) * self.value_norm)
        self.key = math.sqrt(_KEY_SHARE * d / k)
        product = math.sqrt(d * (1 + _KEY_SHARE)) * kv_length / math.sqrt(width * head_dim)
        self.key_norm = _power_of_two(product / (self.key * math.sqrt(_KEY_SHARE * d / q)))
        self.query = product / (self.key * self.key_norm)


def _energy(rows: Tensor, moment: Tensor) -> float:
    """E |W x|^2."""
    return max(float(torch.einsum("ad,de,ae->", rows.double(), moment.double(), rows.double())), 1e-30)


def _power_of_two(value: float) -> float:
    return float(2.0 ** round(math.log2(value)))


def _chosen_values(layout: Layout, heads: int) -> Tensor:
    """Each head its own group of the output: its group's value channels, [heads, c, width]."""
    s = layout.shape
    chosen = torch.zeros(heads, s.head_dim, layout.width)
    for head in range(s.heads):
        first = layout.value.start + head // s.heads_per_group * s.head_dim
        chosen[head, :, first : first + s.head_dim] = torch.eye(s.head_dim)
    return chosen


def _first_token_entries(wkv: Tensor, kv_norm: Tensor, ratio: int) -> Iterator[tuple[str, Tensor]]:
    """An entry is the key-value vector of its first token: at the very beginning, where pretrained heads rest."""
    ape = torch.full((ratio, len(wkv)), _SHUT)
    ape[0] = 0.0
    yield "attn.compressor.ape", ape
    yield "attn.compressor.wkv.weight", wkv
    yield "attn.compressor.wgate.weight", torch.zeros_like(wkv)
    yield "attn.compressor.norm.weight", kv_norm


def _feed_forward(layer: LayerWeights, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Half of the neurons in the one routed expert, half in the shared one; both always count with weight 1."""
    d, half = len(layer.ffn_norm), config.moe_intermediate_size
    yield "ffn_norm.weight", layer.ffn_norm
    yield "ffn.gate.weight", torch.zeros(1, d)
    yield "ffn.gate.bias", torch.zeros(1)
    cut = min(half, len(layer.gate))
    for name, part in (("experts.0", slice(0, cut)), ("shared_experts", slice(cut, None))):
        w1, w2, w3 = torch.zeros(half, d), torch.zeros(d, half), torch.zeros(half, d)
        count = len(layer.gate[part])
        w1[:count], w2[:, :count], w3[:count] = layer.gate[part], layer.down[:, part], layer.up[part]
        yield f"ffn.{name}.w1.weight", w1
        yield f"ffn.{name}.w2.weight", w2
        yield f"ffn.{name}.w3.weight", w3
