"""Greedy choice by the native library."""

from __future__ import annotations

import pytest
import torch

from foveal import _native

ISAS = _native.available_isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 97, 4096, 8191])
def test_greedy_is_the_first_of_the_likeliest(isa: str, count: int) -> None:
    runtime = _native.Runtime(threads=1, isa=isa)
    generator = torch.Generator().manual_seed(count)
    for _ in range(5):
        logits = torch.randint(-9, 9, (count,), generator=generator).float() * 0.7  # many ties
        token, logprob = _native.greedy(runtime, logits)
        assert token == int((logits == logits.max()).nonzero()[0])
        assert logprob == pytest.approx(float(torch.log_softmax(logits.double(), 0)[token]), abs=2e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_greedy_refuses_what_is_not_a_number(isa: str) -> None:
    runtime = _native.Runtime(threads=1, isa=isa)
    impossible = float("-inf")
    allowed = torch.tensor([impossible, 1.0, impossible])
    token, logprob = _native.greedy(runtime, allowed)
    assert (token, logprob) == (1, 0.0)
    for bad in (torch.tensor([0.0, float("nan")]), torch.full((20,), impossible), torch.tensor([float("inf"), 0.0])):
        with pytest.raises(ValueError, match="not numbers"):
            _native.greedy(runtime, bad)
