"""The codes themselves: E2M1 (FP4), E4M3 (FP8) and E8M0 (power-of-two scales), element by element.

Rounding is done in fp32 by adding and subtracting one magic number per element, which rounds to nearest, ties to even,
on any floating-point grid. It gives the bits the hardware's conversions give.

Sources: OCP Microscaling Formats (MX) v1.0 for the codes; DeepSeek-V4's inference kernels for the scale rule.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from foveal.errors import FovealError

Array: TypeAlias = NDArray[Any]
DType: TypeAlias = "np.dtype[Any]"

BF16: Final[DType] = np.dtype(ml_dtypes.bfloat16)
E4M3: Final[DType] = np.dtype(ml_dtypes.float8_e4m3fn)
E8M0: Final[DType] = np.dtype(ml_dtypes.float8_e8m0fnu)
F16: Final[DType] = np.dtype(np.float16)
F32: Final[DType] = np.dtype(np.float32)
F64: Final[DType] = np.dtype(np.float64)
I8: Final[DType] = np.dtype(np.int8)
U8: Final[DType] = np.dtype(np.uint8)
I32: Final[DType] = np.dtype(np.int32)
I64: Final[DType] = np.dtype(np.int64)

E2M1_MAX: Final = 6.0
E4M3_MAX: Final = 448.0

E2M1_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Value of each of the 16 FP4 codes: bit 3 is the sign, bits 2-1 the exponent, bit 0 the mantissa."""

FP8_MIN_AMAX: Final = 1e-4
FP4_MIN_AMAX: Final = E2M1_MAX * 2.0**-126

KV_BLOCK: Final = 64
"""Channels that share a scale in a cached KV vector."""
ACTIVATION_BLOCK: Final = 128
"""Channels that share a scale in the input of an FP8 or FP4 matrix."""
FP4_BLOCK: Final = 32
"""Elements that share a scale in FP4."""
FP8_BLOCK: Final = 128
"""Rows, and columns, that share a scale in an FP8 matrix."""

EXPONENT_BITS: Final = 0x7F800000
MANTISSA_BITS: Final = 0x007FFFFF

_E8M0_NAN: Final = 255
_VALUES = np.array(E2M1_VALUES, dtype=np.float32)
_PAIRS = np.array([(E2M1_VALUES[byte & 15], E2M1_VALUES[byte >> 4]) for byte in range(256)], dtype=np.float32)
"""Both values of a byte of two FP4 codes, low nibble first: [256, 2] fp32."""


class FormatError(FovealError, ValueError):
    """An array does not fit the number format: wrong shape, dtype, or a value the format cannot hold exactly."""

    code = "invalid_request"


def _round_to_grid(values: Array, mantissa_bits: int, min_exponent: int) -> Array:
    """Round fp32 `values` to nearest-even on the grid of a small float format; no clamping to its largest value.

    Between 2^e and 2^(e+1) the grid's step is 2^(e - mantissa_bits); below 2^min_exponent it stays what it is there
    (subnormals). Adding 1.5 * 2^23 steps makes fp32's own rounding cut at that step. Keeps the sign of zero; NaN stays.
    """
    binade = np.maximum(values.view(np.int32) & EXPONENT_BITS, np.int32((min_exponent + 127) << 23))
    with np.errstate(over="ignore", invalid="ignore"):
        magic = binade.view(np.float32) * np.float32(1.5 * 2.0 ** (23 - mantissa_bits))
        return np.copysign((values + magic) - magic, values)


def round_e2m1(values: Array) -> Array:
    """fp32 values in [-6, 6] -> the nearest FP4 values (fp32), ties to the even code: 0.25 -> 0, 0.75 -> 1, 5 -> 4."""
    return _round_to_grid(np.ascontiguousarray(values), mantissa_bits=1, min_exponent=0)


def round_e4m3(values: Array) -> Array:
    """fp32 values in [-448, 448] -> the nearest FP8 E4M3 values (fp32), ties to even."""
    return _round_to_grid(np.ascontiguousarray(values), mantissa_bits=3, min_exponent=-6)


def encode_e4m3(values: Array) -> Array:
    """Values of the E4M3 grid (fp32, `round_e4m3`) -> their codes (uint8). NaN becomes NaN."""
    return values.astype(E4M3).view(np.uint8)


def decode_e4m3(codes: Array) -> Array:
    """E4M3 codes (uint8 or float8_e4m3fn) -> fp32 values."""
    return _E4M3_TABLE[codes.view(np.uint8)]


_E4M3_TABLE = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)


def encode_e2m1(values: Array) -> Array:
    """fp32 values -> FP4 codes 0..15 (uint8, one an element). Values beyond +-6 saturate; NaN is not representable."""
    rounded = round_e2m1(np.clip(values.astype(np.float32, copy=False), -E2M1_MAX, E2M1_MAX))
    magnitude = np.abs(rounded)
    # 0, .5, 1, 1.5, 2 -> 0..4 is doubling; 3 -> 5 and 4 -> 6 add two; 6 -> 7 adds one.
    code = np.where(magnitude <= 2, magnitude * 2, np.where(magnitude < 6, magnitude + 2, np.float32(7)))
    return code.astype(np.uint8) | (np.signbit(rounded).astype(np.uint8) << np.uint8(3))


def decode_e2m1(codes: Array) -> Array:
    """FP4 codes 0..15 (any integer dtype) -> fp32 values."""
    return _VALUES[codes]


def pack_e2m1(codes: Array) -> Array:
    """Codes [..., 2k] -> bytes [..., k] uint8: element 2j in the low nibble of byte j, 2j + 1 in the high one."""
    if codes.shape[-1] % 2:
        raise FormatError(f"cannot pack {codes.shape[-1]} FP4 codes into bytes: the last axis must be even")
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def unpack_e2m1(packed: Array) -> Array:
    """Bytes [..., k] (int8 or uint8) -> codes [..., 2k] uint8; the inverse of `pack_e2m1`."""
    packed = packed.view(np.uint8)
    pairs = np.stack((packed & np.uint8(15), packed >> np.uint8(4)), axis=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def decode_packed_e2m1(packed: Array) -> Array:
    """Bytes [..., k] (int8 or uint8) -> fp32 values [..., 2k], through a table of 256 pairs."""
    # A pair of floats is looked up as one 8-byte element: half the index traffic of looking up each float.
    pairs = _PAIRS.view(np.int64)[:, 0][np.ascontiguousarray(packed).view(np.uint8)]
    return pairs.view(np.float32).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def ceil_power_of_two(values: Array) -> Array:
    """Smallest power of two >= each positive normal fp32 value, by a test on exponent and mantissa bits (no log2).

    An exact power of two stays. Infinity and NaN become NaN.
    """
    up = ((values.view(np.int32) + np.int32(MANTISSA_BITS)) & np.int32(EXPONENT_BITS)).view(np.float32)
    return np.where(np.isfinite(values), up, np.float32(np.nan))


def encode_e8m0(scales: Array) -> Array:
    """fp32 scales -> bytes b with 2^(b - 127) >= scale, the smallest such (uint8). Exact for 2^-127 .. 2^127.

    Larger values saturate at 254, smaller ones and zero become 0 (2^-127), infinity and NaN become 255 (NaN).
    """
    scales = np.ascontiguousarray(scales, dtype=np.float32)
    # Subnormal scales: 2^-127 itself is code 0; anything between it and 2^-126 rounds up to code 1.
    exponent = (scales.view(np.int32) + np.int32(MANTISSA_BITS)) >> np.int32(23)
    exponent = np.clip(np.where(scales > 2.0**-127, exponent, 0), 0, 254)
    return np.where(np.isfinite(scales), exponent, _E8M0_NAN).astype(np.uint8)


def decode_e8m0(codes: Array) -> Array:
    """Scale bytes (uint8, or float8_e8m0fnu) -> fp32 powers of two 2^(b - 127); 255 is NaN."""
    return _E8M0_TABLE[codes.view(np.uint8)]


_E8M0_TABLE = np.arange(256, dtype=np.uint8).view(E8M0).astype(np.float32)
