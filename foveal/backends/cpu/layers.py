"""A checkpoint's weights as the native network takes them: its shape, each layer, and both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from foveal import _native
from foveal.backends.cpu.packing import native_matrix, native_table, numbers
from foveal.config import LayerKind, ModelConfig, Numerics
from foveal.config.frequencies import frequencies_of
from foveal.formats import F32, I64, Array, Fp4Weight, Fp8Weight, Weight, dequantize

Weights = Mapping[str, Weight]
Values = dict[str, Any]


def shape_of(config: ModelConfig, numerics: Numerics) -> Values:
    """What holds for all layers."""
    return {
        "d": config.hidden_size,
        "streams": config.hc_mult,
        "heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "q_lora": config.q_lora_rank,
        "groups": config.o_groups,
        "window": config.sliding_window,
        "vocabulary": config.vocab_size,
        "index_heads": config.index_n_heads,
        "index_dim": config.index_head_dim,
        "topk": config.index_topk,
        "experts": config.n_routed_experts,
        "active": config.num_experts_per_tok,
        "route_scale": config.routed_scaling_factor,
        "limit": config.swiglu_limit,
        "norm_eps": config.rms_norm_eps,
        "hyper_eps": config.hc_eps,
        "sinkhorn_iters": config.hc_sinkhorn_iters,
        "simulate_linear": numerics.activations and config.linear_dtype != "bf16",
        "simulate_experts": numerics.activations and config.expert_dtype != "bf16",
        "quantize_kv": numerics.kv,
        "quantize_index": numerics.index,
    }


def layer_of(config: ModelConfig, weights: Weights, layer: int) -> Values:
    """Everything of one layer. Raises `KeyError`, `ValueError` as `NativeNetwork` does."""
    of, frequencies = f"layers.{layer}", frequencies_of(config, layer)
    attn, ffn, kind = f"{of}.attn", f"{of}.ffn", config.kind(layer)
    values: Values = {
        "ratio": config.compress_ratios[layer],
        "o_lora": config.o_lora_rank,
        "expert_width": config.moe_intermediate_size,
        "shared_width": config.moe_intermediate_size * config.n_shared_experts,
        **_hyper(weights, f"{of}.", "attn"),
        **_hyper(weights, f"{of}.", "ffn"),
        **{name: numbers(weights[f"{of}.{name}.weight"]) for name in ("attn_norm", "ffn_norm")},
        **{name: _matrix(weights, f"{attn}.{name}") for name in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")},
        **{name: numbers(weights[f"{attn}.{name}.weight"]) for name in ("q_norm", "kv_norm")},
        "sink": numbers(weights[f"{attn}.attn_sink"]),
        "rotary_half": len(frequencies),
        "frequencies": np.ascontiguousarray(frequencies, dtype=F32),
        **_experts(config, weights, ffn),
    }
    if f"{ffn}.gate.tid2eid" in weights:
        values["gate_table"] = _table(config, weights[f"{ffn}.gate.tid2eid"])
    else:
        values["gate_bias"] = numbers(weights[f"{ffn}.gate.bias"])
    if kind is not LayerKind.SLIDING:
        values |= _compressor(weights, "main", f"{attn}.compressor")
    if kind is LayerKind.CSA:
        values |= _compressor(weights, "index", f"{attn}.indexer.compressor")
        values["index_wq_b"] = _matrix(weights, f"{attn}.indexer.wq_b")
        values["index_weights"] = _matrix(weights, f"{attn}.indexer.weights_proj")
    return values


def ends_of(weights: Weights) -> Values:
    """The embedding and the head."""
    return {
        "embedding": _embedding(weights["embed.weight"]),
        "head": _matrix(weights, "head"),
        "norm": numbers(weights["norm.weight"]),
        **_hyper(weights, "", "head"),
    }


def without_experts(config: ModelConfig, values: Values) -> Values:
    """The layer with experts that add nothing."""
    m, d, shared = config.moe_intermediate_size, config.hidden_size, config.moe_intermediate_size
    shared *= config.n_shared_experts
    wide, tall = _zeros(m, d), _zeros(d, m)
    count = config.n_routed_experts
    nothing: Values = {"w1": [wide] * count, "w2": [tall] * count, "w3": [wide] * count}
    nothing |= {"shared1": _zeros(shared, d), "shared2": _zeros(d, shared), "shared3": _zeros(shared, d)}
    return values | nothing


def _zeros(rows: int, columns: int) -> _native.Matrix:
    return native_table(np.zeros((rows, columns), dtype=F32))


def _matrix(weights: Weights, name: str) -> _native.Matrix:
    """Of attention and the head: a converted model's are zeros for the greater part."""
    return native_matrix(weights[f"{name}.weight"], skip_zeros=True)


def _expert(weights: Weights, name: str) -> _native.Matrix:
    return native_matrix(weights[f"{name}.weight"])


def _hyper(weights: Weights, prefix: str, name: str) -> Values:
    return {f"hc_{name}_{part}": numbers(weights[f"{prefix}hc_{name}_{part}"]) for part in ("fn", "base", "scale")}


def _compressor(weights: Weights, role: str, prefix: str) -> Values:
    return {
        f"{role}_wkv": _matrix(weights, f"{prefix}.wkv"),
        f"{role}_wgate": _matrix(weights, f"{prefix}.wgate"),
        f"{role}_ape": numbers(weights[f"{prefix}.ape"]),
        f"{role}_norm": numbers(weights[f"{prefix}.norm.weight"]),
    }


def _experts(config: ModelConfig, weights: Weights, ffn: str) -> Values:
    each = range(config.n_routed_experts)
    routed = {name: [_expert(weights, f"{ffn}.experts.{e}.{name}") for e in each] for name in ("w1", "w2", "w3")}
    shared = {f"shared{i}": _expert(weights, f"{ffn}.shared_experts.w{i}") for i in (1, 2, 3)}
    return {"gate": native_matrix(numbers(weights[f"{ffn}.gate.weight"])), **routed, **shared}


def _table(config: ModelConfig, weight: Weight) -> Array:
    """Token ids to experts, int64. Raises `ValueError` for one that is none: the kernels do not look again."""
    table = np.array(weight, dtype=I64, order="C")
    lowest, highest = int(table.min()), int(table.max())
    if lowest < 0 or highest >= config.n_routed_experts:
        raise ValueError(f"tid2eid names experts {lowest} to {highest}; there are {config.n_routed_experts} (from 0)")
    return table


def _embedding(table: Weight) -> _native.Matrix:
    return native_matrix(table) if isinstance(table, Fp4Weight | Fp8Weight) else native_table(table)


def rows_of(table: Weight, tokens: Array) -> Array:
    """Rows of the embedding in fp32, [n, d]."""
    if isinstance(table, Fp4Weight | Fp8Weight):
        return dequantize(table)[tokens]
    return table[tokens].astype(F32)
