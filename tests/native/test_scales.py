"""Weights at the ends of what block scales can say: the same numbers on every instruction set and the reference."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.formats import Fp4Weight, Fp8Weight, Weight, dequantize, quantize_fp8
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops import dense as native
from foveal.ops import reference

ISAS = _native.available_isas()
ENDS = [*range(0, 18), 63, 64, *range(238, 255)]
"""E8M0 codes: scales of 2^-127 to 2^-110, about the bound of the fallback, and 2^111 to 2^127."""


def product(isa: str, x: Tensor, weight: Weight, *, exact: bool = False, simulate: bool = False) -> Tensor:
    runtime = _native.Runtime(threads=1, isa=isa, exact=exact)
    out = torch.full((len(x), weight.shape[0]), float("nan"))
    _native.linear(runtime, x.contiguous(), [native.native_matrix(weight)], [simulate], [out])
    return out


def fp8(code: int, other: int = 127) -> Fp8Weight:
    """Every finite E4M3 code in a block with one scale, and again in one with another."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(2)
    codes[codes & 127 == 127] = 0
    codes = torch.stack((codes, codes.flip(0), codes.roll(7)))
    scales = torch.tensor([[code, code, other, other]], dtype=torch.uint8)
    weight = Fp8Weight(codes.view(torch.float8_e4m3fn), scales)
    codes[dequantize(weight).isinf()] = 0  # which would fill its row with NaN
    return weight


def fp4(code: int, other: int = 127) -> Fp4Weight:
    """Every pair of E2M1 codes in blocks with two scales."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    scales = torch.full((2, 16), code, dtype=torch.uint8)
    scales[:, 1::2] = other
    weight = Fp4Weight(codes, scales)
    codes[dequantize(weight).isinf().unflatten(1, (-1, 2)).any(2)] = 0
    return weight


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("make", [fp8, fp4])
def test_every_code_times_every_scale_at_the_ends(isa: str, exact: bool, make: type[Weight]) -> None:
    """One activation of 1 at a time: each product is the weight itself, subnormal fp32 numbers included."""
    for code in ENDS:
        weight = make(code)  # type: ignore[operator]
        values = dequantize(weight)
        assert bool((values != 0).any()), code
        for rows in (weight.shape[1], 3):
            x = torch.eye(weight.shape[1])[:rows]
            assert torch.equal(product(isa, x, weight, exact=exact).T, values[:, :rows]), (code, rows)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("simulate", [False, True])
@pytest.mark.parametrize("code", [0, 2, 9, 17, 245])
def test_sums_agree_with_the_reference(isa: str, simulate: bool, code: int) -> None:
    generator = torch.Generator().manual_seed(code)
    for weight in (fp8(code, code), fp4(code, code)):
        x = torch.randn(20, weight.shape[1], generator=generator) * (2.0**-10 if code > 200 else 1.0)
        wanted = reference.linear(x, weight, simulate=simulate)
        room = x.abs() @ dequantize(weight).abs().T
        for count in (1, 4, 20):
            found = product(isa, x[:count], weight, exact=True, simulate=simulate)
            difference = (found - wanted[:count]).abs()
            assert bool((difference <= 2e-5 * room[:count] + 2.0**-148 * weight.shape[1]).all()), count
        alone = torch.cat([product(isa, row[None], weight, simulate=simulate) for row in x])
        assert torch.equal(alone, product(isa, x, weight, simulate=simulate)), "a token feels its batch"


@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_tiny_bf16_numbers(isa: str) -> None:
    weight = (torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * 2.0**-125).bfloat16()
    weight[0] = 0
    weight[2:] *= 2.0**100
    assert torch.equal(product(isa, torch.eye(64), weight).T, weight.float())


def test_only_what_kernels_cannot_hold_is_expanded() -> None:
    """A scale below the bound over nothing but zeros, as quantisers write it, costs nothing."""
    generator = torch.Generator().manual_seed(0)
    plain = quantize_fp8(torch.randn(256, 256, generator=generator))
    scale = plain.scale.clone().view(torch.uint8)
    codes = plain.codes.clone().view(torch.uint8)
    codes[128:, :128] = 0x80  # minus zero
    scale[1, 0] = 0
    assert not native.beyond_kernels(Fp8Weight(codes.view(torch.float8_e4m3fn), scale))
    codes[130, 3] = 1
    assert native.beyond_kernels(Fp8Weight(codes.view(torch.float8_e4m3fn), scale))
    packed = fp4(127)
    assert not native.beyond_kernels(packed)
    scales = packed.scale.clone()
    scales[0, 3] = 5
    assert native.beyond_kernels(Fp4Weight(packed.codes, scales))
    assert not native.beyond_kernels(Fp4Weight(packed.codes & 0x88, scales))
    assert not native.beyond_kernels(torch.randn(3, 64, generator=generator).bfloat16())
    assert not native.beyond_kernels(torch.zeros(3, 64).bfloat16())


def test_a_ladder_of_fp32_scales() -> None:
    """Scales of Base models are fp32 numbers: powers of two become E8M0 codes, and meet the same bounds."""
    for exponent in (-127, -120, -64, -63, 0, 119, 120, 126):
        weight = fp8(127)
        scaled = Fp8Weight(weight.codes, torch.full((1, 4), math.ldexp(1.0, exponent)))
        assert native.beyond_kernels(scaled) == (exponent < -63 or exponent >= 120), exponent
