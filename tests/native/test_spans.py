"""Blocks of zeros in weights are not read, and nothing changes by it: bit for bit, in every format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.formats import Weight, quantize_fp4, quantize_fp8
from torch import Tensor

from foveal import _native
from foveal.backends.cpu.packing import native_matrix
from foveal.formats.tensors import weight_arrays

ISAS = _native.available_isas()
FORMATS = ("f32", "bf16", "fp8", "fp4")
SHAPES = ((40, 576), (129, 160), (7, 96), (260, 2080), (64, 64))
COUNTS = (1, 2, 3, 4, 5, 16, 17, 33, 70)


def holed(rows: int, columns: int, seed: int) -> Tensor:
    """Rows whose numbers begin and end anywhere, in runs: some have one number, some none."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    row = 0
    while row < rows:
        count = int(torch.randint(1, 24, (1,), generator=generator))
        kind = int(torch.randint(0, 4, (1,), generator=generator))
        first, last = sorted(torch.randint(0, columns + 1, (2,), generator=generator).tolist())
        if kind == 0:
            weight[row : row + count] = 0.0
        elif kind == 1:
            weight[row : row + count, :first] = -0.0
            weight[row : row + count, last:] = 0.0
        elif kind == 2:
            own = weight[row : row + count, first % columns].clone()
            weight[row : row + count] = 0.0
            weight[row : row + count, first % columns] = own
        row += count
    weight[: min(8, rows)] = 0.0  # enough for the rest to be looked at
    return weight


def stored(kind: str, weight: Tensor) -> Weight:
    if kind == "fp8":
        return quantize_fp8(weight)
    if kind == "fp4":
        return quantize_fp4(weight)
    return weight.bfloat16() if kind == "bf16" else weight


def product(runtime: _native.Runtime, x: Tensor, matrix: _native.Matrix, rows: int) -> Tensor:
    out = torch.full((len(x), rows), float("nan"))
    _native.linear(runtime, x, [matrix], [False], [out])
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("exact", [False, True])
def test_the_same_bits(isa: str, kind: str, exact: bool) -> None:
    for seed, (rows, columns) in enumerate(SHAPES):
        weight = stored(kind, holed(rows, columns, seed))
        skipping = native_matrix(weight_arrays(weight), skip_zeros=True)
        dense = native_matrix(weight_arrays(weight))
        assert skipping.skipped > 0 and dense.skipped == 0
        for threads in (1, 2):
            runtime = _native.Runtime(threads=threads, isa=isa, exact=exact)
            for n in COUNTS:
                x = torch.randn(n, columns, generator=torch.Generator().manual_seed(n)) * 7
                ours, theirs = (product(runtime, x, matrix, rows) for matrix in (skipping, dense))
                assert np.array_equal(ours.numpy().view(np.int32), theirs.numpy().view(np.int32))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_weight_without_zeros_is_read_as_it_was(kind: str) -> None:
    weight = stored(kind, torch.randn(200, 256, generator=torch.Generator().manual_seed(1)) + 3)
    assert native_matrix(weight_arrays(weight), skip_zeros=True).skipped == 0


def test_what_is_zeros_is_found() -> None:
    """An identity between rows of zeros, as converted models have it."""
    weight = torch.zeros(1024, 576)
    weight[192:768] = torch.eye(576)
    found = native_matrix(weight.numpy(), skip_zeros=True).skipped
    assert found == pytest.approx(1 - 576 / 1024 / 9)


def test_a_scale_that_is_no_number_is_not_skipped() -> None:
    """Zeros times it are no numbers either, and a damaged weight shall show."""
    weight = quantize_fp8(torch.zeros(256, 256))
    arrays = weight_arrays(weight)
    scale = np.asarray(arrays.scale).view(np.uint8).copy()
    scale[0, 1] = 255
    matrix = _native.Matrix("fp8", 256, 256, np.asarray(arrays.codes).view(np.uint8), scale, skip_zeros=True)
    out = product(_native.Runtime(threads=1), torch.ones(1, 256), matrix, 256)
    assert out[0, :128].isnan().all() and bool((out[0, 128:] == 0).all())
