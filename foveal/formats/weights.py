"""Packed matrices: FP4 and FP8 codes with their block scales, exactly as they lie in a checkpoint.

A packed weight is a frozen pair of arrays and nothing more, so that the arrays can be views of a memory-mapped file.
`shape` is always the logical one. Quantising what came from dequantising gives back the same values. Layouts: FP4 packs
two E2M1 codes in a byte along the input axis, low nibble first, with a scale for each row and 32 inputs; FP8 has a
scale for each 128 x 128 block, partial blocks at the edges included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np

from foveal.formats.blocks import block_codes_fp4, fp8_scale, split_blocks
from foveal.formats.codes import (
    E4M3,
    E4M3_MAX,
    E8M0,
    F32,
    FP4_BLOCK,
    FP8_BLOCK,
    FP8_MIN_AMAX,
    Array,
    DType,
    FormatError,
    decode_e4m3,
    decode_e8m0,
    decode_packed_e2m1,
    encode_e2m1,
    encode_e8m0,
    pack_e2m1,
    round_e4m3,
)

ScaleDtype = Literal["ue8m0", "float32"]

_SCALES = ("float32", "uint8", "float8_e8m0fnu")


class AnyArray(Protocol):
    """What the classes here ask of an array, numpy's or torch's."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def ndim(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


A = TypeVar("A", bound=AnyArray)


@dataclass(frozen=True, eq=False)
class Fp4Weight(Generic[A]):
    """An MXFP4 matrix, or a stack of them, on numpy arrays or torch tensors.

    `codes`: int8 or uint8 [..., out, in / 2], two E2M1 codes a byte, element 2j in the low nibble of byte j.
    `scale`: [..., out, in / 32], float8_e8m0fnu, uint8 (the same bits) or fp32.

    Raises `FormatError` when shapes or dtypes do not fit.
    """

    codes: A
    scale: A

    def __post_init__(self) -> None:
        if dtype_name(self.codes) not in ("int8", "uint8") or self.codes.ndim < 2:
            raise FormatError(f"FP4 codes are {_describe(self.codes)}; they must be int8 or uint8 [..., out, in / 2]")
        wanted = (*self.shape[:-1], self.shape[-1] // FP4_BLOCK)
        if self.shape[-1] % FP4_BLOCK or tuple(self.scale.shape) != wanted or dtype_name(self.scale) not in _SCALES:
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


@dataclass(frozen=True, eq=False)
class Fp8Weight(Generic[A]):
    """An E4M3 matrix with 128 x 128 block scales, or a stack of them, on numpy arrays or torch tensors.

    `codes`: float8_e4m3fn [..., out, in]. `scale`: [..., ceil(out / 128), ceil(in / 128)], float8_e8m0fnu, uint8 (the
    same bits) or fp32.

    Raises `FormatError` when shapes or dtypes do not fit.
    """

    codes: A
    scale: A

    def __post_init__(self) -> None:
        if dtype_name(self.codes) != "float8_e4m3fn" or self.codes.ndim < 2:
            raise FormatError(f"FP8 codes are {_describe(self.codes)}; they must be float8_e4m3fn [..., out, in]")
        wanted = fp8_scale_shape(self.shape)
        if tuple(self.scale.shape) != wanted or dtype_name(self.scale) not in _SCALES:
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


Weight: TypeAlias = Array | Fp4Weight[Array] | Fp8Weight[Array]
"""A parameter in any storage format. All three have `shape` and `nbytes`."""


def dtype_name(array: AnyArray) -> str:
    """The name that numpy and torch have for a dtype in common."""
    return str(array.dtype).removeprefix("torch.")


def fp8_scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scale grid of an FP8 matrix of logical `shape` [..., out, in]."""
    *lead, rows, columns = shape
    return (*lead, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))


def dequantize(weight: Weight, dtype: DType = F32) -> Array:
    """Any weight as a plain array [..., out, in] of `dtype`: each code's value times its scale, computed in fp32. A
    plain array of that dtype is returned as it is."""
    if isinstance(weight, Fp4Weight):
        values = split_blocks(decode_packed_e2m1(weight.codes), FP4_BLOCK)
        values *= scale_values(weight.scale)[..., None]
        return values.reshape(weight.shape).astype(dtype, copy=False)
    if isinstance(weight, Fp8Weight):
        return _scale_tiles(decode_e4m3(weight.codes), scale_values(weight.scale)).astype(dtype, copy=False)
    return weight.astype(dtype, copy=False)


def quantize_fp4(w: Array) -> Fp4Weight[Array]:
    """[..., out, in] any float dtype -> MXFP4 with the smallest power-of-two scales that do not clip.

    Values that already are FP4 multiples of such a scale are kept exactly. Raises `FormatError` when in is no multiple
    of 32 or a value is not finite.
    """
    _check_matrix(w, "FP4")
    if w.shape[-1] % FP4_BLOCK:
        raise FormatError(f"cannot store {list(w.shape)} as FP4: the last axis must be a multiple of {FP4_BLOCK}")
    values, scale = block_codes_fp4(split_blocks(w, FP4_BLOCK))
    codes = pack_e2m1(encode_e2m1(values).reshape(w.shape)).view(np.int8)
    return Fp4Weight(codes, encode_e8m0(scale[..., 0]).view(E8M0))


def quantize_fp8(w: Array, scale_dtype: ScaleDtype = "ue8m0") -> Fp8Weight[Array]:
    """[..., out, in] any float dtype -> E4M3 with a scale for each 128 x 128 block.

    "ue8m0": the smallest power of two that does not clip (as in the instruct models). "float32": the largest magnitude
    / 448 (as in the Base models). Raises `FormatError` when a value is not finite.
    """
    _check_matrix(w, "FP8")
    values, scale = _fp8_codes(w, scale_dtype)
    stored = encode_e8m0(scale).view(E8M0) if scale_dtype == "ue8m0" else scale
    return Fp8Weight(values.astype(E4M3), stored)


def fp4_to_fp8(weight: Fp4Weight[Array]) -> Fp8Weight[Array]:
    """Re-block FP4 to FP8 without changing a single value.

    The scale S of each 128 x 128 block is its largest FP4 scale / 2^6; each FP4 value times (its own scale / S) becomes
    the E4M3 code. Exact when the scales of the non-zero values in a block span at most 2^14; raises `FormatError` when
    that is not so.
    """
    fine = scale_values(weight.scale)
    span = FP8_BLOCK // FP4_BLOCK
    coarse = _tiles(fine, FP8_BLOCK, span).max((-3, -1)) * np.float32(2.0**-6)
    coarse = np.maximum(coarse, np.float32(2.0**-127))
    wide = np.repeat(coarse, FP8_BLOCK, -2)[..., : fine.shape[-2], :]
    wide = np.repeat(wide, span, -1)[..., : fine.shape[-1]]
    exact = split_blocks(decode_packed_e2m1(weight.codes), FP4_BLOCK) * (fine / wide)[..., None]
    exact = exact.reshape(weight.shape)
    with np.errstate(over="ignore"):
        codes = exact.astype(E4M3)
    wrong = int((decode_e4m3(codes) != exact).sum())
    if wrong:
        raise FormatError(
            f"{wrong} value(s) of an FP4 matrix {list(weight.shape)} have no exact FP8 form: the scales inside some "
            f"128 x 128 block span more than 2^14; dequantise and use quantize_fp8 if rounding is acceptable"
        )
    stored = coarse if weight.scale.dtype == F32 else encode_e8m0(coarse).view(E8M0)
    return Fp8Weight(codes, stored)


# ---------------------------------------------------------------------- blocks of 128 x 128


def _tiles(x: Array, rows: int, columns: int) -> Array:
    """[..., R, C] -> [..., R / rows, rows, C / columns, columns], zeros after the edges."""
    below, right = -x.shape[-2] % rows, -x.shape[-1] % columns
    if below or right:
        x = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, below), (0, right)])
    *lead, r, c = x.shape
    return x.reshape(*lead, r // rows, rows, c // columns, columns)


def _scale_tiles(x: Array, scale: Array) -> Array:
    """Multiply each 128 x 128 block of fp32 `x` [..., out, in] by its entry of `scale`, in place."""
    columns = np.repeat(scale, FP8_BLOCK, -1)[..., : x.shape[-1]]
    for place in range(scale.shape[-2]):
        x[..., place * FP8_BLOCK : (place + 1) * FP8_BLOCK, :] *= columns[..., place : place + 1, :]
    return x


def _fp8_codes(w: Array, scale_dtype: ScaleDtype) -> tuple[Array, Array]:
    """E4M3 values in units of the scale, [..., out, in] fp32, and the scale grid, fp32."""
    w = w.astype(np.float32)
    amax = _tiles(np.abs(w), FP8_BLOCK, FP8_BLOCK).max((-3, -1))
    if scale_dtype == "ue8m0":
        scale = fp8_scale(amax)
    elif scale_dtype == "float32":
        scale = np.maximum(amax, np.float32(FP8_MIN_AMAX)) / np.float32(E4M3_MAX)
    else:
        raise FormatError(f"scale dtype is {scale_dtype!r}; it must be 'ue8m0' or 'float32'")
    scaled = _scale_tiles(w, np.reciprocal(scale))
    return round_e4m3(np.clip(scaled, -E4M3_MAX, E4M3_MAX)), scale


# ---------------------------------------------------------------------- checks


def scale_values(scale: Array) -> Array:
    """Scales in fp32, whatever they are stored as."""
    return scale if scale.dtype == F32 else decode_e8m0(scale)


def is_floating(dtype: DType) -> bool:
    """Whether numbers of a dtype have fractions, those that numpy does not know itself included."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype.name.startswith(("bfloat", "float"))


def _check_matrix(w: Array, what: str) -> None:
    if w.ndim < 2 or not is_floating(w.dtype):
        raise FormatError(f"cannot store {_describe(w)} as {what}: it must be a floating-point matrix [..., out, in]")
    if not bool(np.isfinite(w).all()):
        raise FormatError(f"cannot store {_describe(w)} as {what}: it holds an infinity or NaN")


def _describe(t: AnyArray) -> str:
    return f"{dtype_name(t)} {list(t.shape)}"
