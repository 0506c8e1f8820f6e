"""Fake quantisation: round values as a number format would, and keep them in floating point.

What is special here: the official inference code's rules, to the bit. Scales are powers of two chosen from the largest
magnitude in a block, with floors that differ between FP8 and FP4; the gradient goes straight through. Blocks are cut by
one reshape (padding the last, partial block), so that no Python loop runs over them.

Scale rules (DeepSeek-V4 inference kernels): FP8 s = 2^ceil(log2(max(amax, 1e-4) / 448)); FP4 s = 2^ceil(log2(max(amax,
6 * 2^-126) / 6)). The quotient is an fp32 product with the reciprocal, its ceiling a test on the bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.formats.codes import E2M1_MAX, E4M3_MAX, FormatError, ceil_power_of_two, round_e2m1, round_e4m3

FP8_MIN_AMAX = 1e-4
FP4_MIN_AMAX = E2M1_MAX * 2.0**-126

KV_BLOCK = 64
"""Channels that share a scale in a cached KV vector."""
ACTIVATION_BLOCK = 128
"""Channels that share a scale in the input of an FP8 or FP4 matrix."""
FP4_BLOCK = 32
"""Elements that share a scale in FP4."""


def fp8_scale(amax: Tensor) -> Tensor:
    """Largest magnitude of a block (fp32) -> its power-of-two FP8 scale. 448 -> 1, 449 -> 2, 1 -> 2^-8, 0 -> 2^-22."""
    return ceil_power_of_two(amax.clamp_min(FP8_MIN_AMAX).mul(1 / E4M3_MAX))


def fp4_scale(amax: Tensor) -> Tensor:
    """Largest magnitude of a block (fp32) -> its power-of-two FP4 scale. 6 -> 1, 0 -> 2^-126."""
    return ceil_power_of_two(amax.clamp_min(FP4_MIN_AMAX).mul(1 / E2M1_MAX))


def split_blocks(x: Tensor, block: int) -> Tensor:
    """[..., k] any float dtype -> fp32 [..., ceil(k / block), block], zeros after the end."""
    missing = -x.shape[-1] % block
    x = x.float()
    if missing:
        x = pad(x, (0, missing))
    return x.unflatten(-1, (-1, block))


def join_blocks(blocks: Tensor, width: int) -> Tensor:
    """The inverse of `split_blocks`: [..., b, block] -> [..., width]."""
    return blocks.flatten(-2)[..., :width]


def block_codes_fp8(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [..., b, block] -> E4M3 values in units of the scale (fp32, same shape) and scales [..., b, 1]."""
    scale = fp8_scale(blocks.abs().amax(-1, keepdim=True))
    return round_e4m3((blocks * scale.reciprocal()).clamp_(-E4M3_MAX, E4M3_MAX)), scale


def block_codes_fp4(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [..., b, block] -> E2M1 values in units of the scale (fp32, same shape) and scales [..., b, 1]."""
    scale = fp4_scale(blocks.abs().amax(-1, keepdim=True))
    return round_e2m1((blocks * scale.reciprocal()).clamp_(-E2M1_MAX, E2M1_MAX)), scale


class _StraightThrough(torch.autograd.Function):
    """Applies a rounding; hands the gradient through unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """``rounding(x)``, whose gradient with respect to `x` is the identity."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _StraightThrough.apply(x, rounding)
    with torch.no_grad():
        return rounding(x)


def _fake(x: Tensor, block: int, codes: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    if x.shape[-1] == 0 or x.numel() == 0:
        return x.clone()
    values, scale = codes(split_blocks(x, block))
    # The official code stores code * scale as BF16. Both formats' products fit BF16's 8 bits exactly, so this rounds
    # nothing; it is skipped unless the result is BF16 anyway.
    return join_blocks(values.mul_(scale), x.shape[-1]).to(x.dtype)


def _check_block(block: int) -> None:
    if block < 1:
        raise FormatError(f"block is {block}; it must be an integer >= 1")


def fake_quantize_fp8(x: Tensor, block: int = ACTIVATION_BLOCK) -> Tensor:
    """Round `x` [..., k] to E4M3 with one power-of-two scale for each `block` consecutive elements of the last axis.

    The last block may be partial. `block` is 128 for the input of a quantised matrix, 64 for KV vectors. Result in
    `x`'s dtype; straight-through gradient. A block with an infinity or NaN in it becomes NaN.
    """
    _check_block(block)
    return straight_through(x, lambda t: _fake(t, block, block_codes_fp8))


def fake_quantize_fp4(x: Tensor, block: int = FP4_BLOCK) -> Tensor:
    """Round `x` [..., k] to E2M1 with one power-of-two scale for each `block` consecutive elements of the last axis.

    The last block may be partial. Result in `x`'s dtype; straight-through gradient. A block with an infinity or NaN in
    it becomes NaN. Used for the indexer's queries and keys, after the Hadamard rotation.
    """
    _check_block(block)
    return straight_through(x, lambda t: _fake(t, block, block_codes_fp4))


def fake_quantize_kv(x: Tensor, rope_dim: int) -> Tensor:
    """Round KV vectors `x` [..., c] as the FP8 cache stores them.

    The first c - `rope_dim` channels go to E4M3 in blocks of 64, the last `rope_dim` (rotary) ones to BF16. Result in
    `x`'s dtype; straight-through gradient.
    """
    return straight_through(x, lambda t: _fake_kv(t, rope_dim))


def _fake_kv(x: Tensor, rope_dim: int) -> Tensor:
    nope = x.shape[-1] - rope_dim
    rotary = x[..., nope:].to(torch.bfloat16).to(x.dtype)
    return torch.cat((_fake(x[..., :nope], KV_BLOCK, block_codes_fp8), rotary), dim=-1)
