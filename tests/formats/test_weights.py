"""Packed matrices: round trips, shapes, re-blocking, refusals."""

import pytest
import torch
from helpers import formats
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.formats import FormatError, Fp4Weight, Fp8Weight

seeds = st.integers(0, 2**31)


@settings(max_examples=30)
@given(seeds, st.integers(1, 40), st.integers(1, 6))
def test_fp4_round_trip_equals_fake_quantisation(seed, rows, blocks):
    torch.manual_seed(seed)
    w = torch.randn(rows, 32 * blocks)
    packed = formats.quantize_fp4(w)
    assert packed.shape == w.shape
    assert packed.nbytes == w.numel() // 2 + w.numel() // 32
    assert torch.equal(formats.dequantize(packed), formats.fake_quantize_fp4(w))
    assert torch.equal(formats.dequantize(packed), formats.fake_quantize_weight_fp4(w))
    again = formats.quantize_fp4(formats.dequantize(packed))
    assert torch.equal(formats.dequantize(again), formats.dequantize(packed))


@settings(max_examples=30)
@given(seeds, st.integers(1, 300), st.integers(1, 300), st.sampled_from(["ue8m0", "float32"]))
def test_fp8_round_trip(seed, rows, columns, scale_dtype):
    torch.manual_seed(seed)
    w = torch.randn(rows, columns) * 0.02
    packed = formats.quantize_fp8(w, scale_dtype)
    assert packed.shape == w.shape
    assert packed.scale.shape == (-(-rows // 128), -(-columns // 128))
    plain = formats.dequantize(packed)
    assert torch.equal(plain, formats.fake_quantize_weight_fp8(w, scale_dtype))
    for row in range(rows):
        scale = formats.decode_e8m0(packed.scale) if scale_dtype == "ue8m0" else packed.scale
        by_hand = packed.codes[row].float() * scale[row // 128].repeat_interleave(128)[:columns]
        assert torch.equal(plain[row], by_hand)
        if row > 3:
            break
    # E4M3 keeps 4 significant bits (error 1/16 of the value), or half its smallest step (2^-10 scales).
    limit = (w.abs() / 16).clamp_min(2.0**-10 * scale.amax().item())
    assert bool(((plain - w).abs() <= limit).all())
    if scale_dtype == "ue8m0":
        assert torch.equal(formats.dequantize(formats.quantize_fp8(plain)), plain)


def test_the_last_row_uses_the_last_scale():
    scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    weight = Fp8Weight(torch.ones(130, 129).to(torch.float8_e4m3fn), scale)
    plain = formats.dequantize(weight)
    assert plain[0, 0] == 1 and plain[0, 128] == 2 and plain[129, 127] == 4 and plain[129, 128] == 8


def test_both_byte_dtypes_and_fp32_scales_mean_the_same():
    packed = formats.quantize_fp4(torch.randn(3, 64))
    plain = formats.dequantize(packed)
    as_bytes = Fp4Weight(packed.codes.view(torch.uint8), packed.scale.view(torch.uint8))
    as_float = Fp4Weight(packed.codes, packed.scale.float())
    assert torch.equal(formats.dequantize(as_bytes), plain)
    assert torch.equal(formats.dequantize(as_float), plain)
    assert formats.dequantize(packed, torch.bfloat16).dtype is torch.bfloat16


def test_low_nibble_is_the_first_element():
    w = torch.zeros(1, 32)
    w[0, 0], w[0, 1] = 6.0, -0.5
    assert formats.quantize_fp4(w).codes.view(torch.uint8)[0, 0] == 0x97


def test_stacks_of_matrices():
    w = torch.randn(3, 130, 64)
    for quantize in (formats.quantize_fp4, formats.quantize_fp8):
        stacked = quantize(w)
        assert stacked.shape == (3, 130, 64)
        for i in range(3):
            assert torch.equal(formats.dequantize(stacked)[i], formats.dequantize(quantize(w[i])))


@settings(max_examples=20)
@given(seeds, st.integers(1, 200), st.integers(1, 9))
def test_fp4_to_fp8_is_lossless(seed, rows, blocks):
    torch.manual_seed(seed)
    w = torch.randn(rows, 32 * blocks) * 2.0 ** torch.randint(-6, 6, (rows, 1))
    w[rows // 2] = 0  # a row of zeros has the smallest scale there is; it must not spoil its block
    packed = formats.quantize_fp4(w)
    assert torch.equal(formats.dequantize(formats.fp4_to_fp8(packed)), formats.dequantize(packed))
    wide = Fp4Weight(packed.codes, packed.scale.float())
    assert torch.equal(formats.dequantize(formats.fp4_to_fp8(wide)), formats.dequantize(packed))


def test_fp4_to_fp8_at_and_beyond_the_span():
    codes = torch.full((2, 16), 0x11, dtype=torch.uint8)  # every value is 0.5
    exact = Fp4Weight(codes, torch.tensor([[127], [127 - 14]], dtype=torch.uint8))
    assert torch.equal(formats.dequantize(formats.fp4_to_fp8(exact)), formats.dequantize(exact))
    beyond = Fp4Weight(codes, torch.tensor([[127], [127 - 15]], dtype=torch.uint8))
    with pytest.raises(FormatError, match="32 value"):
        formats.fp4_to_fp8(beyond)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fp4Weight(torch.zeros(2, 16), torch.zeros(2, 1)), "int8 or uint8"),
        (lambda: Fp4Weight(torch.zeros(2, 16, dtype=torch.int8), torch.zeros(2, 2)), r"\[2, 1\]"),
        (lambda: Fp4Weight(torch.zeros(2, 8, dtype=torch.int8), torch.zeros(2, 0)), "multiple of 32"),
        (lambda: Fp8Weight(torch.zeros(2, 16), torch.zeros(1, 1)), "float8_e4m3fn"),
        (lambda: Fp8Weight(torch.zeros(129, 16).to(torch.float8_e4m3fn), torch.zeros(1, 1)), r"\[2, 1\]"),
        (lambda: Fp8Weight(torch.zeros(2, 2).to(torch.float8_e4m3fn), torch.zeros(1, 1).bfloat16()), "bfloat16"),
        (lambda: formats.quantize_fp4(torch.zeros(2, 33)), "multiple of 32"),
        (lambda: formats.quantize_fp4(torch.full((2, 32), float("nan"))), "NaN"),
        (lambda: formats.quantize_fp8(torch.zeros(5)), "matrix"),
        (lambda: formats.quantize_fp8(torch.zeros(5, 5), "e8m0"), "ue8m0"),
    ],
)
def test_what_does_not_fit_is_refused(make, said):
    with pytest.raises(FormatError, match=said):
        make()


def test_dequantize_any_weight():
    plain = torch.randn(4, 32)
    assert formats.dequantize(plain) is plain
    assert formats.dequantize(formats.quantize_fp8(plain), torch.bfloat16).dtype is torch.bfloat16
