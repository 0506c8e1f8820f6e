"""The codes themselves: E2M1 (FP4), E4M3 (FP8) and E8M0 (power-of-two scales), element by element.

What is special here: rounding is done in fp32 by adding and subtracting one magic number per element, which rounds to
nearest, ties to even, on any floating-point grid. It gives the bits the hardware's conversions give, for both formats
and in half the time of a conversion there and back.

Sources: OCP Microscaling Formats (MX) v1.0 for the codes; DeepSeek-V4's inference kernels for the scale rule.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

E2M1_MAX: Final = 6.0
E4M3_MAX: Final = 448.0

E2M1_VALUES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Value of each of the 16 FP4 codes: bit 3 is the sign, bits 2-1 the exponent, bit 0 the mantissa."""

_E8M0_BIAS: Final = 127
_E8M0_NAN: Final = 255
_EXPONENT_BITS: Final = 0x7F800000
_MANTISSA_BITS: Final = 0x007FFFFF

_PAIRS = torch.tensor([(E2M1_VALUES[byte & 15], E2M1_VALUES[byte >> 4]) for byte in range(256)], dtype=torch.float32)
"""Both values of a byte of two FP4 codes, low nibble first: [256, 2] fp32."""


class FormatError(ValueError):
    """A tensor does not fit the number format: wrong shape, dtype, or a value the format cannot hold exactly."""


def _round_to_grid(values: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """Round fp32 `values` to nearest-even on the grid of a small float format; no clamping to its largest value.

    Between 2^e and 2^(e+1) the grid's step is 2^(e - mantissa_bits); below 2^min_exponent it stays what it is there
    (subnormals). Adding 1.5 * 2^23 steps makes fp32's own rounding cut at that step. Keeps the sign of zero; NaN stays.
    """
    binade = (values.view(torch.int32) & _EXPONENT_BITS).clamp_min_((min_exponent + 127) << 23)
    magic = binade.view(torch.float32).mul(1.5 * 2.0 ** (23 - mantissa_bits))
    rounded = (values + magic).sub_(magic)
    return torch.copysign(rounded, values)


def round_e2m1(values: Tensor) -> Tensor:
    """fp32 values in [-6, 6] -> the nearest FP4 values (fp32), ties to the even code: 0.25 -> 0, 0.75 -> 1, 5 -> 4."""
    return _round_to_grid(values.contiguous(), mantissa_bits=1, min_exponent=0)


def round_e4m3(values: Tensor) -> Tensor:
    """fp32 values in [-448, 448] -> the nearest FP8 E4M3 values (fp32), ties to even."""
    return _round_to_grid(values.contiguous(), mantissa_bits=3, min_exponent=-6)


def encode_e2m1(values: Tensor) -> Tensor:
    """fp32 values -> FP4 codes 0..15 (uint8, one an element). Values beyond +-6 saturate; NaN is not representable."""
    rounded = round_e2m1(values.float().clamp(-E2M1_MAX, E2M1_MAX))
    magnitude = rounded.abs()
    # 0, .5, 1, 1.5, 2 -> 0..4 is doubling; 3 -> 5 and 4 -> 6 add two; 6 -> 7 adds one.
    code = torch.where(magnitude <= 2, magnitude * 2, torch.where(magnitude < 6, magnitude + 2, 7.0))
    return code.to(torch.uint8) | (torch.signbit(rounded).to(torch.uint8) << 3)


def decode_e2m1(codes: Tensor) -> Tensor:
    """FP4 codes 0..15 (any integer dtype) -> fp32 values."""
    return torch.tensor(E2M1_VALUES, device=codes.device)[codes.int()]


def pack_e2m1(codes: Tensor) -> Tensor:
    """Codes [..., 2k] -> bytes [..., k] uint8: element 2j in the low nibble of byte j, 2j + 1 in the high one."""
    if codes.shape[-1] % 2:
        raise FormatError(f"cannot pack {codes.shape[-1]} FP4 codes into bytes: the last axis must be even")
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Bytes [..., k] (int8 or uint8) -> codes [..., 2k] uint8; the inverse of `pack_e2m1`."""
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def decode_packed_e2m1(packed: Tensor) -> Tensor:
    """Bytes [..., k] (int8 or uint8) -> fp32 values [..., 2k], through a table of 256 pairs."""
    # A pair of floats is looked up as one 8-byte element: half the index traffic of looking up each float.
    table = _PAIRS.to(packed.device).view(torch.int64).flatten()
    index = packed.contiguous().view(torch.uint8).flatten().int()
    pairs = table.index_select(0, index).view(torch.float32)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def ceil_power_of_two(values: Tensor) -> Tensor:
    """Smallest power of two >= each positive normal fp32 value, by a test on exponent and mantissa bits (no log2).

    An exact power of two stays. Infinity and NaN become NaN.
    """
    bits = values.view(torch.int32)
    up = ((bits + _MANTISSA_BITS) & _EXPONENT_BITS).view(torch.float32)
    return torch.where(values.isfinite(), up, torch.nan)


def encode_e8m0(scales: Tensor) -> Tensor:
    """fp32 scales -> bytes b with 2^(b - 127) >= scale, the smallest such (uint8). Exact for 2^-127 .. 2^127.

    Larger values saturate at 254, smaller ones and zero become 0 (2^-127), infinity and NaN become 255 (NaN).
    """
    scales = scales.float().contiguous()
    bits = scales.view(torch.int32)
    # Subnormal scales: 2^-127 itself is code 0; anything between it and 2^-126 rounds up to code 1.
    exponent = ((bits + _MANTISSA_BITS) >> 23).where(scales > 2.0**-127, 0).clamp(0, 254)
    return torch.where(scales.isfinite(), exponent, _E8M0_NAN).to(torch.uint8)


def decode_e8m0(codes: Tensor) -> Tensor:
    """Scale bytes (uint8, or torch.float8_e8m0fnu) -> fp32 powers of two 2^(b - 127); 255 is NaN."""
    return codes.view(torch.float8_e8m0fnu).float()
