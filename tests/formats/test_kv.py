"""Packed cache vectors: sizes, exactness, and that packing again changes nothing."""

import pytest
import torch
from helpers import formats
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.formats import FormatError


def test_published_sizes():
    assert formats.kv_fp8_bytes(512, 64) == 584
    assert formats.index_fp4_bytes(128) == 68


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 300), st.integers(0, 40))
def test_kv_decodes_to_the_fake_quantised_values(seed, n, nope, half_rope):
    torch.manual_seed(seed)
    rope = 2 * half_rope
    x = torch.randn(n, nope + rope) * 2.0 ** torch.randint(-25, 12, (n, 1))
    packed = formats.encode_kv_fp8(x, rope)
    assert packed.dtype is torch.uint8
    assert packed.shape == (n, formats.kv_fp8_bytes(nope + rope, rope))
    assert packed.shape[-1] % 8 == 0
    decoded = formats.decode_kv_fp8(packed, nope + rope, rope)
    assert torch.equal(decoded[:, :nope], formats.fake_quantize_fp8(x[:, :nope], 64))
    assert torch.equal(decoded[:, nope:], x[:, nope:].bfloat16().float())
    assert torch.equal(decoded, formats.fake_quantize_kv(x, rope))
    again = formats.decode_kv_fp8(formats.encode_kv_fp8(decoded, rope), nope + rope, rope)
    assert torch.equal(again.view(torch.int32), decoded.view(torch.int32))


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 80))
def test_index_keys_decode_to_the_fake_quantised_values(seed, n, pairs):
    torch.manual_seed(seed)
    x = torch.randn(n, 2 * pairs) * 2.0 ** torch.randint(-60, 60, (n, 1))
    packed = formats.encode_index_fp4(x)
    assert packed.shape == (n, formats.index_fp4_bytes(2 * pairs))
    decoded = formats.decode_index_fp4(packed, 2 * pairs)
    assert torch.equal(decoded, formats.fake_quantize_fp4(x))
    again = formats.decode_index_fp4(formats.encode_index_fp4(decoded), 2 * pairs)
    assert torch.equal(again.view(torch.int32), decoded.view(torch.int32))


def test_the_layout_of_a_kv_vector():
    x = torch.zeros(512)
    x[0], x[63], x[64], x[511] = 448.0, -1.0, 1.0, 3.0
    packed = formats.encode_kv_fp8(x, 64)
    assert packed[:448].view(torch.float8_e4m3fn)[[0, 63, 64]].tolist() == [448, -1, 256]
    assert packed[448:576].view(torch.bfloat16)[63] == 3
    assert packed[576:].tolist() == [127, 119, 105, 105, 105, 105, 105, 0]


def test_the_layout_of_an_index_key():
    x = torch.zeros(128)
    x[0], x[1], x[96] = 6.0, -0.5, 1.0
    packed = formats.encode_index_fp4(x)
    assert packed[0] == 0x97 and packed[48] == 0x06
    assert packed[64:].tolist() == [127, 1, 1, 125]


def test_shapes_with_leading_axes_none_and_many():
    x = torch.randn(3, 0, 96)
    assert formats.decode_kv_fp8(formats.encode_kv_fp8(x, 32), 96, 32).shape == (3, 0, 96)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    assert formats.decode_index_fp4(formats.encode_index_fp4(x), 64, torch.bfloat16).shape == (2, 3, 64)


def test_nan_is_stored_and_read_as_nan():
    x = torch.ones(1, 128)
    x[0, 5] = float("nan")
    assert formats.decode_kv_fp8(formats.encode_kv_fp8(x, 0), 128, 0)[0].isnan().tolist() == [True] * 64 + [False] * 64
    assert formats.decode_index_fp4(formats.encode_index_fp4(x), 128)[0].isnan().sum() == 32


def test_wrong_sizes_are_refused():
    with pytest.raises(FormatError, match="584"):
        formats.decode_kv_fp8(torch.zeros(2, 583, dtype=torch.uint8), 512, 64)
    with pytest.raises(FormatError, match="uint8"):
        formats.decode_index_fp4(torch.zeros(2, 68), 128)
    with pytest.raises(FormatError, match="even"):
        formats.index_fp4_bytes(33)
    with pytest.raises(FormatError, match="rotary"):
        formats.kv_fp8_bytes(32, 64)
