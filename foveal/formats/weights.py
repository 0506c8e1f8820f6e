"""Packed matrices: FP4 and FP8 codes with their block scales, exactly as they lie in a checkpoint.

What is special here: a packed weight is a frozen pair of tensors and nothing more, so that the tensors can be views of
a memory-mapped file. `shape` is always the logical one. Quantising what came from dequantising gives back the same
values. Layouts: FP4 packs two E2M1 codes in a byte along the input axis, low nibble first, with a scale for each row
and 32 inputs; FP8 has a scale for each 128 x 128 block, partial blocks at the edges included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveal.formats.codes import (
    E4M3_MAX,
    FormatError,
    decode_e8m0,
    decode_packed_e2m1,
    encode_e2m1,
    encode_e8m0,
    pack_e2m1,
    round_e4m3,
)
from foveal.formats.fake import FP4_BLOCK, FP8_MIN_AMAX, block_codes_fp4, fp8_scale, split_blocks, straight_through

FP8_BLOCK = 128
"""Rows, and columns, that share a scale in an FP8 matrix."""

ScaleDtype = Literal["ue8m0", "float32"]

_BYTE_SCALES = (torch.uint8, torch.float8_e8m0fnu)


@dataclass(frozen=True, eq=False)
class Fp4Weight:
    """An MXFP4 matrix, or a stack of them.

    `codes`: int8 or uint8 [..., out, in / 2], two E2M1 codes a byte, element 2j in the low nibble of byte j.
    `scale`: [..., out, in / 32], float8_e8m0fnu, uint8 (the same bits) or fp32.

    Raises `FormatError` when shapes or dtypes do not fit.
    """

    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.codes.dtype not in (torch.int8, torch.uint8) or self.codes.ndim < 2:
            raise FormatError(f"FP4 codes are {_describe(self.codes)}; they must be int8 or uint8 [..., out, in / 2]")
        wanted = (*self.shape[:-1], self.shape[-1] // FP4_BLOCK)
        if self.shape[-1] % FP4_BLOCK or tuple(self.scale.shape) != wanted or not _is_scale(self.scale):
            raise FormatError(
                f"FP4 scale is {_describe(self.scale)} for a matrix {list(self.shape)}; it must be float8_e8m0fnu, "
                f"uint8 or float32 {list(wanted)}, and the input width a multiple of {FP4_BLOCK}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., out, in]."""
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [..., out, in] in `dtype`: each code's value times its scale, computed in fp32."""
        values = decode_packed_e2m1(self.codes).unflatten(-1, (-1, FP4_BLOCK))
        return values.mul_(_scale_values(self.scale).unsqueeze(-1)).flatten(-2).to(dtype)

    def to(self, device: torch.device | str) -> Fp4Weight:
        """The same weight on `device`."""
        return Fp4Weight(self.codes.to(device), self.scale.to(device))


@dataclass(frozen=True, eq=False)
class Fp8Weight:
    """An E4M3 matrix with 128 x 128 block scales, or a stack of them.

    `codes`: float8_e4m3fn [..., out, in]. `scale`: [..., ceil(out / 128), ceil(in / 128)], float8_e8m0fnu, uint8 (the
    same bits) or fp32.

    Raises `FormatError` when shapes or dtypes do not fit.
    """

    codes: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.codes.dtype is not torch.float8_e4m3fn or self.codes.ndim < 2:
            raise FormatError(f"FP8 codes are {_describe(self.codes)}; they must be float8_e4m3fn [..., out, in]")
        wanted = fp8_scale_shape(self.shape)
        if tuple(self.scale.shape) != wanted or not _is_scale(self.scale):
            raise FormatError(
                f"FP8 scale is {_describe(self.scale)} for a matrix {list(self.shape)}; it must be float8_e8m0fnu, "
                f"uint8 or float32 {list(wanted)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [..., out, in]."""
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [..., out, in] in `dtype`: each code's value times its block's scale, computed in fp32."""
        return _scale_tiles(self.codes.float(), _scale_values(self.scale)).to(dtype)

    def to(self, device: torch.device | str) -> Fp8Weight:
        """The same weight on `device`."""
        return Fp8Weight(self.codes.to(device), self.scale.to(device))


Weight: TypeAlias = Tensor | Fp4Weight | Fp8Weight
"""A parameter in any storage format. All three have `shape` and `nbytes`."""


def fp8_scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scale grid of an FP8 matrix of logical `shape` [..., out, in]."""
    *lead, rows, columns = shape
    return (*lead, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))


def dequantize(weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Any weight as a plain tensor of `dtype`. A plain tensor of that dtype is returned as it is."""
    return weight.to(dtype) if isinstance(weight, Tensor) else weight.dequantize(dtype)


def quantize_fp4(w: Tensor) -> Fp4Weight:
    """[..., out, in] any float dtype -> MXFP4 with the smallest power-of-two scales that do not clip.

    Values that already are FP4 multiples of such a scale are kept exactly. Raises `FormatError` when in is no multiple
    of 32 or a value is not finite.
    """
    _check_matrix(w, "FP4")
    if w.shape[-1] % FP4_BLOCK:
        raise FormatError(f"cannot store {list(w.shape)} as FP4: the last axis must be a multiple of {FP4_BLOCK}")
    values, scale = block_codes_fp4(split_blocks(w, FP4_BLOCK))
    codes = pack_e2m1(encode_e2m1(values).flatten(-2)).view(torch.int8)
    return Fp4Weight(codes, encode_e8m0(scale.squeeze(-1)).view(torch.float8_e8m0fnu))


def quantize_fp8(w: Tensor, scale_dtype: ScaleDtype = "ue8m0") -> Fp8Weight:
    """[..., out, in] any float dtype -> E4M3 with a scale for each 128 x 128 block.

    "ue8m0": the smallest power of two that does not clip (as in the instruct models). "float32": the largest magnitude
    / 448 (as in the Base models). Raises `FormatError` when a value is not finite.
    """
    _check_matrix(w, "FP8")
    values, scale = _fp8_codes(w, scale_dtype)
    stored = encode_e8m0(scale).view(torch.float8_e8m0fnu) if scale_dtype == "ue8m0" else scale
    return Fp8Weight(values.to(torch.float8_e4m3fn), stored)


def fp4_to_fp8(weight: Fp4Weight) -> Fp8Weight:
    """Re-block FP4 to FP8 without changing a single value.

    The scale S of each 128 x 128 block is its largest FP4 scale / 2^6; each FP4 value times (its own scale / S) becomes
    the E4M3 code. Exact when the scales of the non-zero values in a block span at most 2^14; raises `FormatError` when
    that is not so.
    """
    fine = _scale_values(weight.scale)
    span = FP8_BLOCK // FP4_BLOCK
    coarse = _tiles(fine, FP8_BLOCK, span).amax((-3, -1)) * 2.0**-6
    coarse = coarse.clamp_min(2.0**-127)
    wide = coarse.repeat_interleave(FP8_BLOCK, -2)[..., : fine.shape[-2], :]
    wide = wide.repeat_interleave(span, -1)[..., : fine.shape[-1]]
    exact = decode_packed_e2m1(weight.codes).unflatten(-1, (-1, FP4_BLOCK)).mul_((fine / wide).unsqueeze(-1))
    exact = exact.flatten(-2)
    codes = exact.to(torch.float8_e4m3fn)
    wrong = int((codes.float() != exact).sum())
    if wrong:
        raise FormatError(
            f"{wrong} value(s) of an FP4 matrix {list(weight.shape)} have no exact FP8 form: the scales inside some "
            f"128 x 128 block span more than 2^14; dequantise and use quantize_fp8 if rounding is acceptable"
        )
    stored = coarse if weight.scale.dtype is torch.float32 else encode_e8m0(coarse).view(torch.float8_e8m0fnu)
    return Fp8Weight(codes, stored)


def fake_quantize_weight_fp4(w: Tensor) -> Tensor:
    """``quantize_fp4(w).dequantize(w.dtype)`` with a straight-through gradient, without packing: for training."""
    if w.shape[-1] % FP4_BLOCK:
        raise FormatError(f"cannot store {list(w.shape)} as FP4: the last axis must be a multiple of {FP4_BLOCK}")

    def rounding(t: Tensor) -> Tensor:
        values, scale = block_codes_fp4(split_blocks(t, FP4_BLOCK))
        return values.mul_(scale).flatten(-2).to(t.dtype)

    return straight_through(w, rounding)


def fake_quantize_weight_fp8(w: Tensor, scale_dtype: ScaleDtype = "ue8m0") -> Tensor:
    """``quantize_fp8(w, scale_dtype).dequantize(w.dtype)`` with a straight-through gradient: for training."""

    def rounding(t: Tensor) -> Tensor:
        values, scale = _fp8_codes(t, scale_dtype)
        return _scale_tiles(values, scale).to(t.dtype)

    return straight_through(w, rounding)


# ---------------------------------------------------------------------- blocks of 128 x 128


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


# ---------------------------------------------------------------------- checks


def _scale_values(scale: Tensor) -> Tensor:
    return decode_e8m0(scale) if scale.dtype in _BYTE_SCALES else scale


def _is_scale(scale: Tensor) -> bool:
    return scale.dtype is torch.float32 or scale.dtype in _BYTE_SCALES


def _check_matrix(w: Tensor, what: str) -> None:
    if w.ndim < 2 or not w.dtype.is_floating_point:
        raise FormatError(f"cannot store {_describe(w)} as {what}: it must be a floating-point matrix [..., out, in]")
    if not bool(w.isfinite().all()):
        raise FormatError(f"cannot store {_describe(w)} as {what}: it holds an infinity or NaN")


def _describe(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
