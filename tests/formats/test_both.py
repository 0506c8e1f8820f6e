"""The formats on numpy arrays and on torch tensors: the same bits, also of what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.formats import BF16, E4M3, E8M0, F32, blocks, dequantize, quantize_fp4, quantize_fp8, tensors


def sample(seed: int, *shape: int) -> np.ndarray:
    """Values over many orders of magnitude, block by block, with zeros, NaN and infinities among them."""
    dice = np.random.default_rng(seed)
    values = dice.standard_normal(shape) * 2.0 ** dice.integers(-40, 20, (*shape[:-1], 1))
    values = np.where(dice.random(shape) < 0.1, dice.integers(-40, 40, shape) * 0.25, values)
    if seed % 3 == 0:
        values[dice.random(shape) < 0.01] = dice.choice([np.nan, np.inf, -np.inf])
    return values.astype(np.float32)


def bits(array: np.ndarray) -> np.ndarray:
    """As integers, all NaN alike."""
    return np.where(np.isnan(array), np.float32(np.nan), array).astype(np.float32).view(np.int32)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 300), st.sampled_from([32, 64, 128]))
def test_blocks_are_rounded_alike(seed: int, rows: int, width: int, block: int) -> None:
    x = sample(seed, rows, width)
    ours = blocks.split_blocks(x, block)
    theirs = tensors.split_blocks(torch.from_numpy(x), block)
    for mine, other in (
        (blocks.block_codes_fp8, tensors.block_codes_fp8),
        (blocks.block_codes_fp4, tensors.block_codes_fp4),
    ):
        for one, two in zip(mine(ours), other(theirs), strict=True):
            assert np.array_equal(bits(one), bits(two.numpy()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(1, 9), st.sampled_from(["ue8m0", "float32"]))
def test_matrices_are_stored_and_read_alike(seed: int, rows: int, wide: int, scale: str) -> None:
    w = sample(3 * (seed // 3) + 1, rows, 32 * wide)
    for packed, fake in (
        (quantize_fp4(w), tensors.fake_quantize_weight_fp4(torch.from_numpy(w))),
        (quantize_fp8(w, scale), tensors.fake_quantize_weight_fp8(torch.from_numpy(w), scale)),  # type: ignore[arg-type]
    ):
        assert np.array_equal(bits(dequantize(packed)), bits(fake.numpy()))
        read = tensors.dequantize(tensors.weight_tensors(packed))
        assert np.array_equal(bits(dequantize(packed)), bits(read.numpy()))


@pytest.mark.parametrize("dtype", [BF16, E4M3, E8M0, F32, np.dtype(np.int8), np.dtype(np.int64)], ids=str)
def test_arrays_and_tensors_share_their_memory(dtype: np.dtype) -> None:
    array = np.arange(64, dtype=np.uint8).view(dtype)
    tensor = tensors.to_tensor(array)
    back = tensors.to_array(tensor)
    assert back.dtype == dtype and np.array_equal(back.view(np.uint8), array.view(np.uint8))
    array.view(np.uint8)[3] = 77
    assert tensor.view(torch.uint8)[3] == 77 and back.view(np.uint8)[3] == 77
    array.flags.writeable = False
    assert torch.equal(tensors.to_tensor(array).view(torch.uint8), tensor.view(torch.uint8))
