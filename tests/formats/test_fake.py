"""The official fake-quantisation rules, case by case."""

import pytest
import torch
from helpers import formats
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.formats import FormatError

seeds = st.integers(0, 2**31)


def sample(seed: int, *shape: int) -> torch.Tensor:
    """Values over many orders of magnitude, block by block."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(-40, 20, (*shape[:-1], 1), generator=generator)
    return torch.randn(*shape, generator=generator) * 2.0**exponent


@pytest.mark.parametrize(
    ("amax", "scale"), [(448.0, 1.0), (449.0, 2.0), (1.0, 2.0**-8), (0.0, 2.0**-22), (1e-4, 2.0**-22), (224.0, 0.5)]
)
def test_fp8_scale_cases(amax, scale):
    assert formats.fp8_scale(torch.tensor([amax])).item() == scale


@pytest.mark.parametrize(
    ("amax", "scale"), [(6.0, 1.0), (6.001, 2.0), (3.0, 0.5), (1.0, 0.25), (0.0, 2.0**-126), (6 * 2.0**-126, 2.0**-126)]
)
def test_fp4_scale_cases(amax, scale):
    assert formats.fp4_scale(torch.tensor([amax])).item() == scale


def test_scales_of_every_exponent_are_exact():
    powers = 2.0 ** torch.arange(-13, 100)
    assert torch.equal(formats.fp8_scale(448 * powers), powers)
    assert torch.equal(formats.fp8_scale((448 * powers).nextafter(torch.tensor(1e38))), 2 * powers)
    powers = 2.0 ** torch.arange(-126, 100)
    assert torch.equal(formats.fp4_scale(6 * powers), powers)
    assert torch.equal(formats.fp4_scale((6 * powers).nextafter(torch.tensor(1e38))), 2 * powers)


def test_fp4_ties_inside_a_block():
    x = torch.tensor([6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.75])
    assert formats.fake_quantize_fp4(x).tolist() == [6, 0, 1, 1, 2, 2, 4, 4, -1]


def test_fp8_rounds_to_e4m3_and_not_only_clamps():
    x = torch.tensor([448.0, 1.06, 17.0, 19.0, 431.9])
    assert formats.fake_quantize_fp8(x, 64).tolist() == [448, 1.0, 16, 20, 416]


@settings(max_examples=60)
@given(seeds, st.integers(1, 300), st.sampled_from([64, 128]))
def test_fp8_equals_a_block_by_block_definition(seed, width, block):
    x = sample(seed, 3, width)
    expected = x.clone()
    for part in expected.split(block, -1):
        amax = part.abs().amax(-1, keepdim=True).clamp_min(1e-4)
        scale = torch.exp2(torch.ceil(torch.log2(amax.double() / 448))).float()
        part.copy_((part / scale).to(torch.float8_e4m3fn).float() * scale)
    assert torch.equal(formats.fake_quantize_fp8(x, block), expected)


@settings(max_examples=60)
@given(seeds, st.integers(1, 100))
def test_fp4_equals_a_block_by_block_definition(seed, width):
    x = sample(seed, 3, width)
    table = torch.tensor(formats.E2M1_VALUES[:8])
    expected = x.clone()
    for part in expected.split(32, -1):
        amax = part.abs().amax(-1, keepdim=True).clamp_min(6 * 2.0**-126)
        scale = torch.exp2(torch.ceil(torch.log2(amax.double() / 6))).float()
        distance = ((part / scale).abs()[..., None] - table).abs()
        # The two candidates of a tie are neighbours; the even code wins.
        near = distance == distance.amin(-1, keepdim=True)
        code = torch.where(near, torch.arange(8) + 100 * (torch.arange(8) % 2), 1000).argmin(-1)
        part.copy_(table[code].copysign(part) * scale)
    assert torch.equal(formats.fake_quantize_fp4(x), expected)


@pytest.mark.parametrize("quantize", [formats.fake_quantize_fp8, formats.fake_quantize_fp4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_dtype_and_is_idempotent(quantize, dtype):
    x = torch.randn(5, 7, 200).to(dtype)
    once = quantize(x)
    assert once.dtype is dtype
    assert once.shape == x.shape
    assert torch.equal(quantize(once), once)


def test_results_fit_bf16_exactly():
    x = sample(3, 64, 256)
    for quantize in (formats.fake_quantize_fp8, formats.fake_quantize_fp4):
        y = quantize(x)
        assert torch.equal(y.bfloat16().float(), y)


@pytest.mark.parametrize(
    "quantize",
    [
        formats.fake_quantize_fp8,
        formats.fake_quantize_fp4,
        formats.fake_quantize_weight_fp4,
        formats.fake_quantize_weight_fp8,
        lambda x: formats.fake_quantize_kv(x, 32),
    ],
)
def test_gradient_goes_straight_through_and_the_input_stays(quantize):
    x = torch.randn(70, 160, requires_grad=True)
    before = x.detach().clone()
    y = quantize(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert torch.equal(x.grad, upstream)
    assert torch.equal(x.detach(), before)
    assert not torch.equal(y.detach(), before)


def test_a_block_with_nan_or_infinity_becomes_nan():
    for bad in (float("nan"), float("inf")):
        for quantize, block in ((lambda x: formats.fake_quantize_fp8(x, 64), 64), (formats.fake_quantize_fp4, 32)):
            x = torch.ones(2 * block)
            x[3] = bad
            y = quantize(x)
            assert y[:block].isnan().all()
            assert torch.equal(y[block:], torch.ones(block))


def test_strided_and_empty_inputs():
    x = torch.randn(64, 40)
    assert torch.equal(formats.fake_quantize_fp8(x.t(), 64), formats.fake_quantize_fp8(x.t().contiguous(), 64))
    assert torch.equal(formats.fake_quantize_fp4(x.t()), formats.fake_quantize_fp4(x.t().contiguous()))
    assert formats.fake_quantize_fp8(torch.empty(0, 64)).shape == (0, 64)
    assert formats.fake_quantize_fp4(torch.empty(3, 0)).shape == (3, 0)


def test_a_block_of_zero_is_refused():
    with pytest.raises(FormatError, match="block"):
        formats.fake_quantize_fp8(torch.ones(4), 0)
