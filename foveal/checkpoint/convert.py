"""Change the format of weights: between BF16, FP8 and FP4, and to transformers' state dict.

A stream in, a stream out, one weight at a time, so that a large model converts in little memory. What already has the
wanted format passes through untouched, and FP4 becomes FP8 without loss whenever that is possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from foveal.checkpoint.layout import Storage, WeightSpec, storage_format, weight_specs
from foveal.checkpoint.tensor_names import transformers_name
from foveal.config import ModelConfig
from foveal.formats import (
    BF16,
    F32,
    I64,
    Array,
    DType,
    FormatError,
    Fp4Weight,
    Fp8Weight,
    Weight,
    decode_e8m0,
    dequantize,
    fp4_to_fp8,
    quantize_fp4,
    quantize_fp8,
)


def convert_weights(
    weights: Iterable[tuple[str, Weight]], target: ModelConfig, *, plain_dtype: DType = BF16
) -> Iterator[tuple[str, Weight]]:
    """Weights in any format -> the formats `target` names, ready for `write_checkpoint`.

    `target` has the shapes of the source's config; its `linear_dtype`, `expert_dtype` and `scale_dtype` say what to
    make. Unpacked weights become `plain_dtype` (what the layout keeps in fp32 stays fp32). Weights `target` does not
    have, such as those of MTP blocks it leaves out, are dropped.
    """
    specs = {spec.name: spec for spec in weight_specs(target)}
    for name, weight in weights:
        spec = specs.get(name)
        if spec is not None:
            yield name, convert_weight(weight, spec, target, plain_dtype=plain_dtype)


def convert_weight(weight: Weight, spec: WeightSpec, target: ModelConfig, *, plain_dtype: DType = BF16) -> Weight:
    """One weight in the format `target` stores it as."""
    match storage_format(target, spec):
        case "fp4":
            return _to_fp4(weight, target)
        case "fp8":
            return _to_fp8(weight, target)
        case "f32":
            return dequantize(weight, F32)
        case "i64":
            return dequantize(weight, I64)
        case _:
            return dequantize(weight, plain_dtype)


def _to_fp4(weight: Weight, target: ModelConfig) -> Fp4Weight[Array]:
    packed = weight if isinstance(weight, Fp4Weight) else quantize_fp4(dequantize(weight))
    if target.scale_dtype == "float32" and packed.scale.dtype != F32:
        return Fp4Weight(packed.codes, decode_e8m0(packed.scale))
    if target.scale_dtype == "ue8m0" and packed.scale.dtype == F32:
        return quantize_fp4(dequantize(packed))
    return packed


def _to_fp8(weight: Weight, target: ModelConfig) -> Fp8Weight[Array]:
    if isinstance(weight, Fp4Weight):
        try:
            weight = fp4_to_fp8(weight)
        except FormatError:  # scales too far apart inside a block: the best that is left is to round
            weight = quantize_fp8(dequantize(weight), target.scale_dtype)
    if not isinstance(weight, Fp8Weight):
        return quantize_fp8(weight, target.scale_dtype)
    if target.scale_dtype == "float32" and weight.scale.dtype != F32:
        return Fp8Weight(weight.codes, decode_e8m0(weight.scale))
    if target.scale_dtype == "ue8m0" and weight.scale.dtype == F32:
        return quantize_fp8(dequantize(weight), "ue8m0")
    return weight


def to_transformers(
    config: ModelConfig, weights: Mapping[str, Weight], *, dtype: DType = F32
) -> tuple[dict[str, Any], dict[str, Array]]:
    """-> what ``DeepseekV4Config(**)`` takes, and what ``DeepseekV4ForCausalLM.load_state_dict`` takes,
    as arrays.

    Matrices and norms are dequantised to `dtype`; what the layout keeps in fp32 or int64 stays so. transformers has no
    MTP block: its weights are left out. Copies everything: for tests and small models.

    A folder written by `write_checkpoint` is read by ``from_pretrained`` directly: BF16 and F32 as they are, FP8 with
    FP8 or FP4 experts dequantised on a CPU, if no FP8 matrix has partial 128 x 128 blocks (transformers divides a
    matrix evenly among its scales). It refuses FP8 with BF16 experts.
    """
    bare = config.replace(
        linear_dtype="bf16",
        expert_dtype="bf16",
        num_nextn_predict_layers=0,
        compress_ratios=config.compress_ratios[: config.num_hidden_layers],
    )
    state: dict[str, Array] = {}
    for spec in weight_specs(bare):
        if spec.storage is not Storage.EXPERT:
            plain = convert_weight(weights[spec.name], spec, bare, plain_dtype=dtype)
            assert isinstance(plain, np.ndarray)
            state[transformers_name(spec.name)] = plain
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}.ffn.experts"
        experts = range(config.n_routed_experts)
        w1, w2, w3 = (
            [dequantize(weights[f"{prefix}.{e}.{matrix}.weight"], dtype) for e in experts]
            for matrix in ("w1", "w2", "w3")
        )
        gate_up = [np.concatenate(pair) for pair in zip(w1, w3, strict=True)]
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.stack(gate_up)
        state[f"model.layers.{layer}.mlp.experts.down_proj"] = np.stack(w2)
    data = bare.to_dict()
    for ours in ("linear_dtype", "expert_dtype", "scale_dtype"):
        del data[ours]
    return data, state
