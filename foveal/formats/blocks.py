"""Blocks that share a scale, on numpy arrays: cut, rounded, joined.

These are the official inference code's rules, to the bit (`foveal.formats.tensors` says them, and has them with
gradients).
"""

from __future__ import annotations

import numpy as np

from foveal.formats.codes import (
    E2M1_MAX,
    E4M3_MAX,
    FP4_MIN_AMAX,
    FP8_MIN_AMAX,
    Array,
    ceil_power_of_two,
    round_e2m1,
    round_e4m3,
)


def fp8_scale(amax: Array) -> Array:
    """Largest magnitude of a block (fp32) -> its power-of-two FP8 scale. 448 -> 1, 449 -> 2, 1 -> 2^-8, 0 -> 2^-22."""
    return ceil_power_of_two(np.maximum(amax, np.float32(FP8_MIN_AMAX)) * np.float32(1 / E4M3_MAX))


def fp4_scale(amax: Array) -> Array:
    """Largest magnitude of a block (fp32) -> its power-of-two FP4 scale. 6 -> 1, 0 -> 2^-126."""
    return ceil_power_of_two(np.maximum(amax, np.float32(FP4_MIN_AMAX)) * np.float32(1 / E2M1_MAX))


def split_blocks(x: Array, block: int) -> Array:
    """[..., k] any float dtype -> fp32 [..., ceil(k / block), block], zeros after the end."""
    missing = -x.shape[-1] % block
    x = x.astype(np.float32, copy=False)
    if missing:
        x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], x.shape[-1] // block, block)


def join_blocks(blocks: Array, width: int) -> Array:
    """The inverse of `split_blocks`: [..., b, block] -> [..., width]."""
    return blocks.reshape(*blocks.shape[:-2], blocks.shape[-2] * blocks.shape[-1])[..., :width]


def block_codes_fp8(blocks: Array) -> tuple[Array, Array]:
    """fp32 [..., b, block] -> E4M3 values in units of the scale (fp32, same shape) and scales [..., b, 1]."""
    scale = fp8_scale(np.abs(blocks).max(-1, keepdims=True, initial=0))
    with np.errstate(invalid="ignore"):
        return round_e4m3(np.clip(blocks * np.reciprocal(scale), -E4M3_MAX, E4M3_MAX)), scale


def block_codes_fp4(blocks: Array) -> tuple[Array, Array]:
    """fp32 [..., b, block] -> E2M1 values in units of the scale (fp32, same shape) and scales [..., b, 1]."""
    scale = fp4_scale(np.abs(blocks).max(-1, keepdims=True, initial=0))
    with np.errstate(invalid="ignore", over="ignore"):
        return round_e2m1(np.clip(blocks * np.reciprocal(scale), -E2M1_MAX, E2M1_MAX)), scale
