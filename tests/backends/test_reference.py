"""The reference as a runner: arrays in and out, what `foveal.model` computes between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.networks import random_network, random_tokens, tiny_config

from foveal.backends.reference import ReferenceRunner
from foveal.cache import CacheFormat, CacheLayout, PagePool, Segment, Sequence, contract
from foveal.model import Observer, PlainState
from foveal.model import Segment as OnTensors

CONFIG = tiny_config()
EXACT = CacheFormat("fp32", "fp32")


def sequence() -> Sequence:
    return Sequence(PagePool(CacheLayout(CONFIG, EXACT)), dtype=np.float32)


def test_it_is_the_network_over_plain_tensors() -> None:
    model = random_network(CONFIG, seed=3)
    runner, state, pages = ReferenceRunner(model), PlainState(CONFIG), sequence()
    seen, expected = contract.Observer(), Observer()
    for part in random_tokens(CONFIG, 300, 1).split(77):
        with torch.no_grad():
            wanted = model.logits(model(part, [OnTensors(state, len(part))], expected)).numpy()
        found = runner.logits(runner(part.numpy(), [Segment(pages, len(part))], seen))
        assert found.dtype == np.float32 and np.array_equal(found, wanted)
    assert len(seen.traces) == len(expected.traces)
    for ours, theirs in zip(seen.traces, expected.traces, strict=True):
        assert np.array_equal(ours.entries, theirs.entries.numpy())
        assert np.array_equal(ours.entry_mass, theirs.entry_mass.numpy())


def test_what_it_refuses_leaves_the_sequences_as_they_were() -> None:
    runner, pages = ReferenceRunner(random_network(CONFIG, seed=3)), sequence()
    with pytest.raises(ValueError, match="two segments"):
        runner(np.array([1, 2]), [Segment(pages, 1), Segment(pages, 1)])
    with pytest.raises(ValueError, match="token ids"):
        runner(np.array([1, CONFIG.vocab_size]), [Segment(pages, 2)])
    assert pages.length == 0


def test_gradients_stop_at_the_cache() -> None:
    model = random_network(CONFIG, seed=3).requires_grad_(True)
    pages = sequence()
    ReferenceRunner(model)(np.arange(9), [Segment(pages, 9)])
    assert pages.length == 9 and isinstance(pages.window(0), np.ndarray)
