"""The formats on torch tensors, with gradients: fake quantisation, and packed weights for the reference.

These are the official inference code's rules, to the bit. Scales are powers of two chosen from the largest magnitude in
a block, with floors that differ between FP8 and FP4; the gradient goes straight through. Blocks are cut by one reshape
(padding the last, partial block), so that no Python loop runs over them. The same rules on numpy arrays stand in
`foveal.formats`; tests hold the two together bit for bit.

Scale rules (DeepSeek-V4 inference kernels): FP8 s = 2^ceil(log2(max(amax, 1e-4) / 448)); FP4 s = 2^ceil(log2(max(amax,
6 * 2^-126) / 6)). The quotient is an fp32 product with the reciprocal, its ceiling a test on the bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.formats.codes import (
    ACTIVATION_BLOCK,
    E2M1_MAX,
    E2M1_VALUES,
    E4M3_MAX,
    EXPONENT_BITS,
    FP4_BLOCK,
    FP4_MIN_AMAX,
    FP8_BLOCK,
    FP8_MIN_AMAX,
    KV_BLOCK,
    MANTISSA_BITS,
    Array,
    FormatError,
)
from foveal.formats.weights import Fp4Weight, Fp8Weight, ScaleDtype
from foveal.formats.weights import Weight as ArrayWeight

Weight: TypeAlias = Tensor | Fp4Weight[Tensor] | Fp8Weight[Tensor]
"""A parameter in any storage format, on torch tensors. All three have `shape` and `nbytes`."""

_BITS: dict[Any, tuple[type[Any], torch.dtype]] = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, torch.float8_e8m0fnu),
}
"""Types that torch and numpy do not exchange: what their bits cross as."""
_BACK = {theirs: (bits, ours) for ours, (bits, theirs) in _BITS.items()}


def to_tensor(array: Array) -> Tensor:
    """The same memory as a tensor on the CPU, which is not to be written into where the array may not."""
    bits, dtype = _BITS.get(array.dtype, (None, None))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        if bits is None or dtype is None:
            return torch.from_numpy(array)
        return torch.from_numpy(array.view(bits)).view(dtype)


def to_array(tensor: Tensor) -> Array:
    """The same memory as an array; a copy of what lies on a device."""
    plain = tensor.detach().cpu().contiguous()
    bits, dtype = _BACK.get(plain.dtype, (None, None))
    if bits is None:
        return plain.numpy()
    as_bits = torch.int16 if bits is np.int16 else torch.uint8
    return plain.view(as_bits).numpy().view(dtype)


def weight_tensors(weight: ArrayWeight) -> Weight:
    """A weight on the same memory as torch tensors."""
    if isinstance(weight, Fp4Weight):
        return Fp4Weight(to_tensor(weight.codes), to_tensor(weight.scale))
    if isinstance(weight, Fp8Weight):
        return Fp8Weight(to_tensor(weight.codes), to_tensor(weight.scale))
    return to_tensor(weight)


def weight_arrays(weight: Weight) -> ArrayWeight:
    """The inverse of `weight_tensors`."""
    if isinstance(weight, Fp4Weight):
        return Fp4Weight(to_array(weight.codes), to_array(weight.scale))
    if isinstance(weight, Fp8Weight):
        return Fp8Weight(to_array(weight.codes), to_array(weight.scale))
    return to_array(weight)


# ---------------------------------------------------------------------- rounding


def _round_to_grid(values: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """Round fp32 `values` to nearest-even on the grid of a small float format; no clamping to its largest value.

    Between 2^e and 2^(e+1) the grid's step is 2^(e - mantissa_bits); below 2^min_exponent it stays what it is there
    (subnormals). Adding 1.5 * 2^23 steps makes fp32's own rounding cut at that step. Keeps the sign of zero; NaN stays.
    """
    binade = (values.view(torch.int32) & EXPONENT_BITS).clamp_min_((min_exponent + 127) << 23)
    magic = binade.view(torch.float32).mul(1.5 * 2.0 ** (23 - mantissa_bits))
    rounded = (values + magic).sub_(magic)
    return torch.copysign(rounded, values)


def round_e2m1(values: Tensor) -> Tensor:
    """fp32 values in [-6, 6] -> the nearest FP4 values (fp32), ties to the even code: 0.25 -> 0, 0.75 -> 1, 5 -> 4."""
    return _round_to_grid(values.contiguous(), mantissa_bits=1, min_exponent=0)


def round_e4m3(values: Tensor) -> Tensor:
    """fp32 values in [-448, 448] -> the nearest FP8 E4M3 values (fp32), ties to even."""
    return _round_to_grid(values.contiguous(), mantissa_bits=3, min_exponent=-6)


def ceil_power_of_two(values: Tensor) -> Tensor:
    """Smallest power of two >= each positive normal fp32 value, by a test on exponent and mantissa bits (no log2).

    An exact power of two stays. Infinity and NaN become NaN.
    """
    bits = values.view(torch.int32)
    up = ((bits + MANTISSA_BITS) & EXPONENT_BITS).view(torch.float32)
    return torch.where(values.isfinite(), up, torch.nan)


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


# ---------------------------------------------------------------------- packed weights


def dequantize(weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Any weight as a plain tensor of `dtype`: each code's value times its scale, computed in fp32. A plain tensor of
    that dtype is returned as it is."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    scale = weight.scale if weight.scale.dtype is torch.float32 else _decode_e8m0(weight.scale)
    if isinstance(weight, Fp4Weight):
        values = _decode_packed_e2m1(weight.codes).unflatten(-1, (-1, FP4_BLOCK))
        return values.mul_(scale.unsqueeze(-1)).flatten(-2).to(dtype)
    return _scale_tiles(weight.codes.float(), scale).to(dtype)


def _decode_e8m0(codes: Tensor) -> Tensor:
    return codes.view(torch.float8_e8m0fnu).float()


_PAIRS = torch.tensor([(E2M1_VALUES[byte & 15], E2M1_VALUES[byte >> 4]) for byte in range(256)], dtype=torch.float32)
"""Both values of a byte of two FP4 codes, low nibble first: [256, 2] fp32."""


def _decode_packed_e2m1(packed: Tensor) -> Tensor:
    """Bytes [..., k] (int8 or uint8) -> fp32 values [..., 2k], through a table of 256 pairs."""
    # A pair of floats is looked up as one 8-byte element: half the index traffic of looking up each float.
    table = _PAIRS.to(packed.device).view(torch.int64).flatten()
    index = packed.contiguous().view(torch.uint8).flatten().int()
    pairs = table.index_select(0, index).view(torch.float32)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def fake_quantize_weight_fp4(w: Tensor) -> Tensor:
    """``dequantize(quantize_fp4(w), w.dtype)`` with a straight-through gradient, without packing: for training."""
    if w.shape[-1] % FP4_BLOCK:
        raise FormatError(f"cannot store {list(w.shape)} as FP4: the last axis must be a multiple of {FP4_BLOCK}")

    def rounding(t: Tensor) -> Tensor:
        values, scale = block_codes_fp4(split_blocks(t, FP4_BLOCK))
        return values.mul_(scale).flatten(-2).to(t.dtype)

    return straight_through(w, rounding)


def fake_quantize_weight_fp8(w: Tensor, scale_dtype: ScaleDtype = "ue8m0") -> Tensor:
    """``dequantize(quantize_fp8(w, scale_dtype), w.dtype)`` with a straight-through gradient: for training."""

    def rounding(t: Tensor) -> Tensor:
        values, scale = _fp8_codes(t, scale_dtype)
        return _scale_tiles(values, scale).to(t.dtype)

    return straight_through(w, rounding)


def _fp8_codes(w: Tensor, scale_dtype: ScaleDtype) -> tuple[Tensor, Tensor]:
    """E4M3 values in units of the scale, [..., out, in] fp32, and the scale grid, fp32."""
    w = w.float()
    amax = _tiles(w.abs(), FP8_BLOCK, FP8_BLOCK).amax((-3, -1))
    if scale_dtype == "ue8m0":
        scale = fp8_scale(amax)
    elif scale_dtype == "float32":
        scale = amax.clamp_min(FP8_MIN_AMAX) / E4M3_MAX
    else:
        raise FormatError(f"scale dtype is {scale_dtype!r}; it must be 'ue8m0' or 'float32'")
    scaled = _scale_tiles(w.clone(memory_format=torch.contiguous_format), scale.reciprocal())
    return round_e4m3(scaled.clamp_(-E4M3_MAX, E4M3_MAX)), scale


def _tiles(x: Tensor, rows: int, columns: int) -> Tensor:
    """[..., R, C] -> [..., R / rows, rows, C / columns, columns], zeros after the edges."""
    below, right = -x.shape[-2] % rows, -x.shape[-1] % columns
    if below or right:
        x = pad(x, (0, right, 0, below))
    return x.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))


def _scale_tiles(x: Tensor, scale: Tensor) -> Tensor:
    """Multiply each 128 x 128 block of fp32 `x` [..., out, in] by its entry of `scale`, in place."""
    columns = scale.repeat_interleave(FP8_BLOCK, -1)[..., : x.shape[-1]]
    whole = x.shape[-2] // FP8_BLOCK * FP8_BLOCK
    # Split the rows, which is a view, instead of spreading the scale over them, which is a copy of the matrix.
    if whole:
        x[..., :whole, :].unflatten(-2, (-1, FP8_BLOCK)).mul_(columns[..., : whole // FP8_BLOCK, None, :])
    if whole < x.shape[-2]:
        x[..., whole:, :].mul_(columns[..., -1:, :])
    return x
