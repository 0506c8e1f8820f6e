"""The tail computed again from pages: with the native network, bit for bit that of a run from the beginning."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

import numpy as np
import pytest
from cache_support import EXACT, assert_same, plain, pool, split, step
from cache_support import random_tokens as random_ids
from helpers.configs import random_config
from store_support import same

from foveal.backends.cpu.network import NativeNetwork
from foveal.cache import CacheFormat, CacheFull, CacheLayout, PagePool, Segment, Sequence, SequenceImage
from foveal.cache.replay import replay, replay_start
from foveal.checkpoint import random_weights
from foveal.config import PRESETS, Numerics

pytestmark = pytest.mark.slow

ENDS = (1, 2, 3, 4, 5, 127, 128, 129, 130, 255, 256, 257, 383, 384, 385)
"""Distances from a multiple of 512 at which a residue changes."""


class Native:
    """A random network on the native kernels, which runs tokens into sequences and counts them."""

    def __init__(self, seed: int) -> None:
        self.config = random_config(seed)
        draw = random.Random(seed)
        kv = draw.choice([EXACT, CacheFormat(), CacheFormat("fp8", "fp4")])
        self.network = NativeNetwork(
            self.config, dict(random_weights(self.config, seed)), numerics=Numerics.none(), threads=1
        )
        self.pool = PagePool(CacheLayout(self.config, kv))
        self.ran = 0

    def restore(self, image: SequenceImage) -> Sequence:
        return Sequence.restore(self.pool, image, dtype=np.float32)

    def run(self, sequence: Sequence, tokens: Seq[int]) -> None:
        self.ran += len(tokens)
        self.network(np.array(tokens), [Segment(sequence, len(tokens))])

    def read(self, tokens: np.ndarray, cut: int = 512) -> Sequence:
        sequence = Sequence(self.pool, dtype=np.float32)
        for part in split(tokens, cut):
            self.run(sequence, part.tolist())
        return sequence

    def replay(self, whole: Sequence, length: int) -> Sequence:
        return replay(self.restore, self.run, self.pool.layout, whole.tokens, [p.data for p in whole.pages], length)


@pytest.mark.parametrize("seed", range(12))
def test_a_replay_is_the_run_from_the_beginning(seed: int) -> None:
    """At a length that a run from the beginning reaches, then going on from there; shared pages stay as they are."""
    native, draw = Native(seed), random.Random(seed)
    tokens = random_ids(1500, seed) % native.config.vocab_size
    whole = native.read(tokens)
    before = [page.data.copy() for page in whole.pages]
    for end in draw.sample(ENDS, 4):
        length = 1024 + end
        fresh = native.read(tokens[:length])
        native.ran = 0
        again = native.replay(whole, length)
        assert native.ran == length - replay_start(native.config, length) < 1024
        assert same(again, fresh)
        if native.pool.layout.page_bytes:  # pages of a network without compressors have none, and no address
            assert again.pages[: length // 256] == whole.pages[: length // 256], "full pages are the very same"
        for sequence in (again, fresh):
            native.run(sequence, tokens[length : length + 9].tolist())
        assert same(again, fresh)
        for sequence in (again, fresh):
            sequence.free()
    assert all(np.array_equal(page.data, data) for page, data in zip(whole.pages, before, strict=True))
    native.pool.check_integrity([whole.pages])


def test_it_reaches_no_further_back_than_it_must() -> None:
    """A window of tokens for each layer, and the few that a new entry adds; from the beginning when there are fewer."""
    nano = PRESETS["nano"]
    assert replay_start(nano, 1 << 20) == (1 << 20) - 128 * nano.num_hidden_layers
    flash = PRESETS["flash"]
    assert (1 << 20) - replay_start(flash, 1 << 20) <= 132 * flash.num_hidden_layers
    assert replay_start(nano, 500) == 0 and replay_start(nano, 0) == 0


@pytest.mark.parametrize("length", [1, 256, 700, 1024, 1100])
def test_the_definition_of_the_state_holds(length: int) -> None:
    """With the stand-in, whose windows depend on tokens only: windows, open rows, entries and kept tails."""
    tokens = random_ids(1200)
    whole = Sequence(pool())
    step(whole, tokens)
    data = [page.data for page in whole.pages]

    def restore(image: SequenceImage) -> Sequence:
        return Sequence.restore(whole.pool, image)

    def run(sequence: Sequence, ids: Seq[int]) -> None:
        step(sequence, np.array(ids))

    again = replay(restore, run, whole.layout, whole.tokens, data, length)
    assert_same(again, plain(tokens[:length]))
    assert [tail.position for tail in again.kept_tails] == [0]


def test_what_stops_it_leaves_nothing_behind() -> None:
    tokens = random_ids(1200)
    whole = Sequence(pool(limit=8))
    step(whole, tokens)
    data = [page.data for page in whole.pages]

    def stop(sequence: Sequence, ids: Seq[int]) -> None:
        if sequence.length >= 768:
            raise KeyboardInterrupt
        step(sequence, np.array(ids))

    live = whole.pool.live
    with pytest.raises(KeyboardInterrupt):
        replay(lambda image: Sequence.restore(whole.pool, image), stop, whole.layout, whole.tokens, data, 1100)
    assert whole.pool.live == live
    others = [whole.pool.acquire(8 - live)]
    with pytest.raises(CacheFull):
        replay(lambda image: Sequence.restore(whole.pool, image), stop, whole.layout, whole.tokens, data, 1100)
    whole.pool.check_integrity([whole.pages, *others])
