"""Random interleavings of everything on many sequences, against the definition recomputed from the tokens."""

from __future__ import annotations

import numpy as np
import pytest
from cache_support import (
    CUTS,
    EXACT,
    FORMATS,
    Broken,
    assert_bytes,
    assert_same,
    plain,
    pool,
    random_tokens,
    split,
    step,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from foveal.cache import CacheFormat, Sequence, page_list
from foveal.cache.page_list import BLOCK_PAGES
from foveal.cache.replay import replay

SIZES = st.sampled_from((1, 2, 3, 4, 5, 7, 64, 127, 128, 129, 255, 256, 257, 511, 512, 513))
SEEDS = st.integers(0, 2**31)


class CacheMachine(RuleBasedStateMachine):
    """The model of a sequence is its token ids; the definition turns them into everything else."""

    format: CacheFormat = EXACT
    sequences = Bundle("sequences")

    @initialize(limit=st.none() | st.just(10_000), block=st.sampled_from((1, 2, 3, BLOCK_PAGES)))
    def start(self, limit: int | None, block: int) -> None:
        page_list.BLOCK_PAGES = block
        self.pool = pool(self.format, limit=limit) if limit else pool(self.format)
        self.past: dict[Sequence, np.ndarray] = {}

    def _changed(self, sequence: Sequence, past: np.ndarray) -> None:
        self.past[sequence] = past
        assert_same(sequence, plain(past))
        assert_bytes(sequence)

    @rule(target=sequences, every=st.none() | st.integers(1, 300), views=st.booleans())
    def make(self, every: int | None, views: bool) -> Sequence:
        sequence = Sequence(self.pool, tail_every=every, views=views)
        self._changed(sequence, np.empty(0, dtype=np.int64))
        return sequence

    @rule(sequence=sequences, size=SIZES, seed=SEEDS)
    def append(self, sequence: Sequence, size: int, seed: int) -> None:
        tokens = random_tokens(size, seed)
        step(sequence, tokens)
        self._changed(sequence, np.concatenate([self.past[sequence], tokens]))

    @rule(sequence=sequences, count=st.integers(2, 9), seed=SEEDS)
    def decode(self, sequence: Sequence, count: int, seed: int) -> None:
        tokens = random_tokens(count, seed)
        for token in split(tokens, 1):
            step(sequence, token)
        self._changed(sequence, np.concatenate([self.past[sequence], tokens]))

    @rule(sequence=sequences, size=SIZES, seed=SEEDS, fail_after=st.integers(0, 5))
    def fail(self, sequence: Sequence, size: int, seed: int, fail_after: int) -> None:
        with pytest.raises(Broken):
            step(sequence, random_tokens(size, seed), fail_after=fail_after)
        # Not rolled back: whatever comes next has to cope. Only reading needs to be told.

    @rule(sequence=sequences)
    def rollback(self, sequence: Sequence) -> None:
        sequence.rollback()
        self._changed(sequence, self.past[sequence])

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: Sequence) -> Sequence:
        child = sequence.fork()
        self._changed(child, self.past[sequence])
        return child

    @rule(sequence=sequences)
    def keep_tail(self, sequence: Sequence) -> None:
        assert sequence.keep_tail().position == sequence.length
        self._changed(sequence, self.past[sequence])

    @rule(sequence=sequences)
    def drop_views(self, sequence: Sequence) -> None:
        sequence.drop_views()

    @rule(sequence=sequences, back=st.floats(0, 1), replay_in=st.sampled_from((1000, 128, 3)))
    def truncate(self, sequence: Sequence, back: float, replay_in: int) -> None:
        past = self.past[sequence]
        length = int(len(past) * back)
        replay = sequence.truncate(length).astype(np.int64)
        self._changed(sequence, past[: length - len(replay)])
        assert np.array_equal(replay, past[length - len(replay) : length])
        for tokens in split(replay, replay_in) if len(replay) else ():
            step(sequence, tokens)
        self._changed(sequence, past[:length])

    @rule(sequence=sequences, where=st.floats(0, 1))
    def put_page(self, sequence: Sequence, where: float) -> None:
        sequence.rollback()
        if not sequence.pages:
            return
        number = min(int(len(sequence.pages) * where), len(sequence.pages) - 1)
        before, data = sequence.pages[number], sequence.pages[number].data.copy()
        sequence.put_page(number, data)
        assert not before.sealed or sequence.pages[number].data is data
        self._changed(sequence, self.past[sequence])

    @rule(target=sequences, sequence=sequences, back=st.floats(0, 1))
    def replay(self, sequence: Sequence, back: float) -> Sequence:
        sequence.rollback()
        past, live = self.past[sequence], self.pool.live
        length = int(len(past) * back)
        again = replay(
            lambda image: Sequence.restore(self.pool, image),
            lambda other, tokens: step(other, np.array(tokens)),
            sequence.layout,
            sequence.tokens,
            [page.data for page in sequence.pages],
            length,
        )
        self._changed(again, past[:length])
        assert self.pool.live <= live + 1, "full pages are shared"
        return again

    @rule(target=sequences, sequence=sequences)
    def save_and_restore(self, sequence: Sequence) -> Sequence:
        live = self.pool.live
        restored = Sequence.restore(self.pool, sequence.export())
        self._changed(restored, self.past[sequence])
        assert self.pool.live <= live + 1, "full pages that are there already are shared"
        return restored

    @rule(target=sequences, sequence=consumes(sequences), other=st.booleans())
    def free(self, sequence: Sequence, other: bool) -> object:
        sequence.free()
        del self.past[sequence]
        return multiple()

    @invariant()
    def counts_are_right(self) -> None:
        self.pool.check_integrity([sequence.pages for sequence in self.past])

    def teardown(self) -> None:
        try:
            self._check_all_at_the_end()
        finally:
            page_list.BLOCK_PAGES = BLOCK_PAGES

    def _check_all_at_the_end(self) -> None:
        if not hasattr(self, "past"):
            return
        for sequence, past in self.past.items():
            sequence.rollback()
            assert_same(sequence, plain(past))
            sequence.free()
        assert self.pool.live == 0
        self.pool.check_integrity([])


class Bf16Machine(CacheMachine):
    format = FORMATS[1]


class PackedMachine(CacheMachine):
    format = FORMATS[2]


TestExact = CacheMachine.TestCase
TestExact.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=False)
TestBf16 = Bf16Machine.TestCase
TestBf16.settings = settings(max_examples=15, stateful_step_count=20, deadline=None, derandomize=False)
TestPacked = PackedMachine.TestCase
TestPacked.settings = settings(max_examples=25, stateful_step_count=20, deadline=None, derandomize=False)


@pytest.mark.parametrize("format", FORMATS[:1] + FORMATS[2:3], ids=str)
def test_every_pair_of_critical_lengths(format: CacheFormat) -> None:
    """Grow to one critical length, fork, go on to the next ones: no sequence sees another's past."""
    shared = pool(format)
    tokens = random_tokens(CUTS[-1])
    trunk = Sequence(shared)
    branches: list[tuple[Sequence, np.ndarray]] = []
    for length in CUTS:
        step(trunk, tokens[trunk.length : length])
        branch, own = trunk.fork(), random_tokens(5, seed=length)
        step(branch, own)
        branches.append((branch, np.concatenate([tokens[:length], own])))
    assert_same(trunk, plain(tokens))
    for branch, past in branches:
        assert_same(branch, plain(past))
    shared.check_integrity([trunk.pages, *(branch.pages for branch, _ in branches)])
