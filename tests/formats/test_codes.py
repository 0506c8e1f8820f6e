"""Every code of every small format, and the rounding between them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal import formats
from foveal.formats import E4M3, E8M0, FormatError


def test_every_e2m1_code_round_trips():
    codes = np.arange(16, dtype=np.uint8)
    values = formats.decode_e2m1(codes)
    assert values.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert np.array_equal(formats.encode_e2m1(values), codes)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4), (0.2501, 0.5), (5.01, 6), (9, 6)],
)
def test_e2m1_ties_go_to_the_even_code(value, rounded, sign):
    code = formats.encode_e2m1(np.array([sign * value], np.float32))
    assert formats.decode_e2m1(code).item() == sign * rounded


def test_every_e8m0_code_round_trips():
    codes = np.arange(256, dtype=np.uint8)
    values = formats.decode_e8m0(codes)
    assert values[:255].tolist() == [2.0 ** (b - 127) for b in range(255)]
    assert math.isnan(values[255])
    assert np.array_equal(formats.encode_e8m0(values), codes)
    assert np.array_equal(formats.decode_e8m0(codes.view(E8M0))[:255], values[:255])


@pytest.mark.parametrize(
    ("scale", "code"),
    [
        *[(1.0, 127), (1.0000001, 128), (3.0, 129), (0.0, 0), (2.0**-140, 0), (2.0**-127 * 1.5, 1), (3e38, 254)],
        *[(math.inf, 255), (math.nan, 255)],
    ],
)
def test_e8m0_rounds_up(scale, code):
    assert formats.encode_e8m0(np.array([scale], np.float32)).item() == code


@given(st.floats(2.0**-126, 2.0**126, width=32))
def test_ceil_power_of_two(value):
    power = formats.ceil_power_of_two(np.array([value], np.float32)).item()
    assert math.frexp(power)[0] == 0.5
    assert power / 2 < value <= power


def test_every_packed_byte_round_trips():
    packed = np.arange(256, dtype=np.uint8)
    codes = formats.unpack_e2m1(packed)
    assert codes[2 * 0x3A : 2 * 0x3A + 2].tolist() == [0xA, 0x3], "the low nibble is the first element"
    assert np.array_equal(formats.pack_e2m1(codes), packed)
    assert np.array_equal(formats.decode_packed_e2m1(packed), formats.decode_e2m1(codes))
    assert np.array_equal(formats.decode_packed_e2m1(packed.view(np.int8)), formats.decode_e2m1(codes))


def test_an_odd_number_of_codes_is_refused():
    with pytest.raises(FormatError, match="even"):
        formats.pack_e2m1(np.zeros(3, dtype=np.uint8))


def test_round_e4m3_gives_the_bits_of_the_conversion():
    # All values of the format, all midpoints between neighbours, and the fp32 values just beside those.
    finite = np.arange(0, 127, dtype=np.uint8).view(E4M3).astype(np.float32)
    middle = (finite[1:] + finite[:-1]) / 2
    around = np.concatenate(
        [finite, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(500))]
    )
    values = np.concatenate([around, -around])
    expected = values.astype(E4M3).astype(np.float32)
    rounded = formats.round_e4m3(values)
    assert np.array_equal(rounded.view(np.int32), expected.view(np.int32))


@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=50))
def test_round_e4m3_agrees_on_any_value(values):
    x = np.array(values, np.float32)
    assert np.array_equal(formats.round_e4m3(x), x.astype(E4M3).astype(np.float32))


@given(st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=50))
def test_round_e2m1_finds_the_nearest(values):
    x = np.array(values, np.float32)
    table = np.array(sorted(set(formats.E2M1_VALUES)), np.float32)
    nearest = np.abs(x[:, None] - table).min(-1)
    assert np.array_equal(np.abs(formats.round_e2m1(x) - x), nearest)
