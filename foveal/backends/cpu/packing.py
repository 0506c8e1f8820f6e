"""Weights as the native kernels take them.

Weights are handed over as the checkpoint stores them and multiplied in that form; the kernels hold on to the arrays. An
FP4 or FP8 weight becomes a `_native.Matrix` once, the first time it is used, and keeps it for as long as it lives.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from foveal import _native
from foveal.formats import (
    BF16,
    E8M0,
    F32,
    FP4_BLOCK,
    FP8_BLOCK,
    Array,
    Fp4Weight,
    Fp8Weight,
    Weight,
    decode_e8m0,
    dequantize,
    encode_e8m0,
)

_known: WeakKeyDictionary[Fp4Weight[Array] | Fp8Weight[Array], _native.Matrix] = WeakKeyDictionary()


def native_matrix(weight: Weight, *, skip_zeros: bool = False) -> _native.Matrix:
    """A weight [out, in] as the kernels take it: no copy where they can read it as it lies.

    FP4 and FP8 with E8M0 scales, BF16 and fp32 are read in place. FP8 or FP4 with fp32 scales that are all powers of
    two gets E8M0 scales; for other fp32 scales the kernels have no format, and the whole weight is dequantised to fp32
    once, to four times (FP8) or eight times (FP4) its size. So is a weight that is `beyond_kernels`. Other
    floating-point arrays become fp32. With `skip_zeros` blocks of zeros are found now and not read later, which changes
    no result.

    Raises `ValueError` unless the weight is a matrix.
    """
    if not isinstance(weight, Fp4Weight | Fp8Weight):
        return native_table(weight.astype(F32) if beyond_kernels(weight) else weight, skip_zeros=skip_zeros)
    found = _known.get(weight)
    if found is None:
        found = _known[weight] = _coded_matrix(weight, skip_zeros)
    return found


def _check(weight: Weight) -> tuple[int, int]:
    if len(weight.shape) != 2:
        raise ValueError(f"a weight has shape {list(weight.shape)}; it must be a matrix [out, in]")
    return weight.shape[0], weight.shape[1]


def native_table(weight: Array, *, skip_zeros: bool = False) -> _native.Matrix:
    """A plain weight whose rows are read and not multiplied: the embedding. BF16 and fp32 are read in place."""
    kept = weight.dtype == BF16
    plain = np.ascontiguousarray(weight, dtype=BF16 if kept else F32)
    kind = "bf16" if kept else "f32"
    return _native.Matrix(kind, *_check(weight), plain.view(np.uint8), skip_zeros=skip_zeros)


def numbers(weight: Weight) -> Array:
    """A small weight in fp32, in memory of its own."""
    return np.array(dequantize(weight), dtype=F32, order="C")


def _coded_matrix(weight: Fp4Weight[Array] | Fp8Weight[Array], skip_zeros: bool) -> _native.Matrix:
    rows, columns = _check(weight)
    scale = _scale_bytes(weight.scale)
    if scale is None or _scales_beyond(weight, scale):
        plain = np.ascontiguousarray(dequantize(weight)).view(np.uint8)
        return _native.Matrix("f32", rows, columns, plain, skip_zeros=skip_zeros)
    kind = "fp8" if isinstance(weight, Fp8Weight) else "fp4"
    codes = np.ascontiguousarray(weight.codes).view(np.uint8)
    return _native.Matrix(kind, rows, columns, codes, scale, skip_zeros=skip_zeros)


def _scale_bytes(scale: Array) -> Array | None:
    """E8M0 bytes of `scale`, or None when some fp32 scale is not a power of two that E8M0 has."""
    if scale.dtype != F32:
        return np.ascontiguousarray(scale).view(np.uint8)
    codes = encode_e8m0(scale)
    return codes if np.array_equal(decode_e8m0(codes.view(E8M0)), scale) else None


_SMALLEST_SCALE = 64
_LARGEST_SCALE = 246
"""E8M0 codes, 2^-63 and 2^119, between which every instruction set multiplies alike. Products of BF16 pairs take
numbers below 2^-126 for 0, in weights as in results; the AVX2 decoder scales by 2^8 times the scale, which must be
finite."""

_FEW_ROWS = 1 << 12


def beyond_kernels(weight: Weight) -> bool:
    """Whether some instruction set would lose entries of `weight` that others keep, since they or their scales are too
    small or too large: it is multiplied in fp32 then. Blocks and rows of zeros count as zeros, whatever their scale."""
    if isinstance(weight, Fp4Weight | Fp8Weight):
        scale = _scale_bytes(weight.scale)
        return scale is not None and _scales_beyond(weight, scale)
    if weight.dtype != BF16 or weight.ndim != 2:
        return False
    least = (_SMALLEST_SCALE << 7) - 1  # as BF16's bits: below the number that a scale at the bound is
    bits = np.ascontiguousarray(weight).view(np.uint16)
    for start in range(0, len(bits), _FEW_ROWS):
        largest = (bits[start : start + _FEW_ROWS] & np.uint16(0x7FFF)).max(axis=1)
        if bool(((largest > 0) & (largest <= least)).any()):
            return True
    return False


def _scales_beyond(weight: Fp4Weight[Array] | Fp8Weight[Array], scale: Array) -> bool:
    if int(scale.min()) >= _SMALLEST_SCALE and int(scale.max()) <= _LARGEST_SCALE:
        return False
    if bool(((scale > _LARGEST_SCALE) & (scale < 255)).any()):
        return True
    return bool(((scale < _SMALLEST_SCALE) & _used_blocks(weight)).any())


def _used_blocks(weight: Fp4Weight[Array] | Fp8Weight[Array]) -> Array:
    """Blocks that hold anything but zeros, in the shape of the scales."""
    codes = weight.codes.view(np.uint8)
    if isinstance(weight, Fp4Weight):
        used: Array = (codes & np.uint8(0x77)).reshape(*weight.scale.shape, FP4_BLOCK // 2).max(-1) > 0
        return used
    rows, columns = weight.shape
    padded = np.pad(codes & np.uint8(0x7F), ((0, -rows % FP8_BLOCK), (0, -columns % FP8_BLOCK)))
    down, across = weight.scale.shape
    used = padded.reshape(down, FP8_BLOCK, across, FP8_BLOCK).max((1, 3)) > 0
    return used
