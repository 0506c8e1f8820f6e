"""Made-up pasts: they are whole sequences, plausible to every kernel, and the network goes on from them."""

from __future__ import annotations

import numpy as np
import pytest
from cache_support import COMPRESSORS, CONFIG, FORMATS, pool

from foveal import _native
from foveal.backends.cpu import NativeNetwork
from foveal.cache import CacheFormat, Part, Segment, Sequence
from foveal.checkpoint import random_weights
from foveal.measure import make_image

LONG = 20_000
"""Tokens enough to show the whole bank of made-up entries more than once."""


def filled(length: int, format: CacheFormat = FORMATS[0], seed: int = 0) -> Sequence:
    made = pool(format)
    return Sequence.restore(made, make_image(made.layout, length, seed=seed), dtype=np.float32)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("length", [1, 255, 256, 1001, LONG])
def test_a_filled_sequence_is_whole(length: int, format: CacheFormat) -> None:
    sequence = filled(length, format)
    assert sequence.length == length and len(sequence.tokens) == length
    for layer, part in COMPRESSORS:
        assert len(sequence.entries(layer, part)) == length // CONFIG.compress_ratios[layer]
    sequence.pool.check_integrity([sequence.pages])


def test_entries_are_distinct_and_of_unit_size_and_on_the_grids() -> None:
    sequence = filled(LONG)
    for layer, part in COMPRESSORS:
        entries = sequence.entries(layer, part)
        assert len(np.unique(entries, axis=0)) == len(entries)
        assert np.median(np.sqrt(np.square(entries).mean(-1))) == pytest.approx(1, abs=0.1)
        if part is Part.MAIN:
            rounded = entries.copy()
            _native.quantize_kv(_native.Runtime(threads=1), rounded, CONFIG.qk_rope_head_dim)
            assert np.array_equal(rounded, entries)
    packed = filled(LONG, CacheFormat("fp8", "fp4"))
    for layer, part in COMPRESSORS:  # packing loses nothing
        assert np.array_equal(packed.entries(layer, part), sequence.entries(layer, part))


def test_pages_are_memory_of_their_own() -> None:
    sequence = filled(LONG, CacheFormat("bf16", "bf16"))
    assert len({page.address for page in sequence.pages}) == len(sequence.pages) == -(-LONG // 256)
    assert len({page.data.tobytes() for page in sequence.pages}) == len(sequence.pages)


def test_the_seed_decides() -> None:
    first, same, other = (filled(700, seed=seed).export() for seed in (1, 1, 2))
    assert np.array_equal(first.pages[0], same.pages[0]) and np.array_equal(first.tokens, same.tokens)
    assert not np.array_equal(first.pages[0], other.pages[0])


def test_the_network_goes_on_from_it() -> None:
    network = NativeNetwork(CONFIG, dict(random_weights(CONFIG)), threads=1)
    sequence = filled(1001)
    streams = network(np.arange(7), [Segment(sequence, 7)])
    assert sequence.length == 1008
    assert bool(np.isfinite(network.logits(streams[-1:])).all())
