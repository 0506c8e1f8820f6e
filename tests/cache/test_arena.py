"""A device's arena behind the cache's protocols: one array of pages, a page a number in it, read through block tables.

The toy device keeps its memory to itself: what the host wants to see it copies, and a backend reads pages by number. So
what these tests do with sequences, saving and loading is what a GPU would do, and cache, store and batch are as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from batch_support import Driven
from cache_support import COMPRESSORS, CONFIG, EXACT, PlainState, assert_same, plain, random_tokens, split, step

from foveal.batch import SamplingParams
from foveal.cache import CacheFull, CacheLayout, InWork, Page, PagePool, Segment, Sequence, Tail
from foveal.formats import Array


class Arena:
    """Memory for `pages` pages in one array [pages, page_bytes] on the device."""

    def __init__(self, layout: CacheLayout, pages: int) -> None:
        self.device = np.zeros((pages, layout.page_bytes), dtype=np.uint8)
        self.free = list(range(pages))[::-1]
        self.copies = 0

    def zeros(self, size: int) -> ArenaPage:
        if not self.free:
            raise CacheFull("the arena is full")
        page = ArenaPage(self, self.free.pop())
        page.clear(0, size)
        return page

    def adopt(self, data: Array) -> ArenaPage:
        page = self.zeros(data.size)
        page.write(0, data)
        return page

    def table(self, pages: Seq[Page]) -> Array:
        """The block table of a sequence: int32 [pages]."""
        return np.array([page.address for page in pages], dtype=np.int32)


class ArenaPage:
    """A number in the arena, given back when nobody holds it."""

    def __init__(self, arena: Arena, number: int) -> None:
        self.arena, self.address = arena, number

    def __del__(self) -> None:
        self.arena.free.append(self.address)

    @property
    def nbytes(self) -> int:
        return self.arena.device.shape[1]

    def read(self) -> Array:
        self.arena.copies += 1
        return self.arena.device[self.address].copy()

    def write(self, offset: int, data: Array) -> None:
        self.arena.device[self.address, offset : offset + data.size] = data.reshape(-1)

    def clear(self, offset: int, size: int) -> None:
        self.arena.device[self.address, offset : offset + size] = 0


@dataclass
class OnDevice:
    """What the toy device keeps of a sequence in work: its block table, and the tail, which a step replaces there."""

    arena: Arena
    table: Array
    at: Tail
    next: Tail | None = None

    def load(self, tail: Tail, pages: Seq[Page]) -> None:
        self.at = tail
        self.add_pages(pages)

    def add_pages(self, pages: Seq[Page]) -> None:
        self.table = np.concatenate([self.table, self.arena.table(pages)])

    def commit(self, count: int) -> None:
        assert self.next is not None and self.next.position == self.at.position + count
        self.at, self.next = self.next, None

    def tail(self) -> Tail:
        return self.at.copy()


class ToyDevice:
    """A backend: a runner on arena pages, which computes what the stand-in of `cache_support` does."""

    config, grain, arithmetic = CONFIG, 1, "toy"

    def __init__(self, pages: int = 64) -> None:
        self.layout = CacheLayout(CONFIG, EXACT)
        self.memory = Arena(self.layout, pages)
        self.keeper = self
        self.pool = PagePool(self.layout, memory=self.memory)

    def keep(self, pool: PagePool) -> OnDevice:
        assert pool.memory is self.memory
        return OnDevice(self.memory, np.empty(0, np.int32), Tail.empty(pool.layout))

    def fits(self, kept: InWork) -> bool:
        return isinstance(kept, OnDevice)

    def __call__(self, tokens: Array, segments: Seq[Segment[Array]], observer: Any = None) -> Array:
        start, rows = 0, []
        for segment in segments:
            own = tokens[start : start + segment.count]
            sequence: Any = segment.state
            work = sequence.begin_work(segment.count, self)
            self._run(work, sequence.length, sequence.tokens, own)
            sequence.commit_work(own)
            rows += [self._row(work, sequence.length)] * segment.count
            start += segment.count
        return np.stack(rows)

    def _run(self, work: OnDevice, length: int, past: Array, own: Array) -> None:
        """Entries go into the arena by block table; the tail is the definition's."""
        state = plain(np.concatenate([past.astype(np.int64), own]))
        for layer, part in COMPRESSORS:
            region = self.layout.region(layer, part)
            new = state.entries(layer, part)[CONFIG.entries_after(length, layer) :]
            encoded = region.codec.encode(new)
            for number, row in enumerate(encoded, start=CONFIG.entries_after(length, layer)):
                at = region.offset + number % region.count * region.entry_bytes
                self.memory.device[work.table[number // region.count], at : at + region.entry_bytes] = row
        work.next = self._tail(state)

    def _tail(self, state: PlainState) -> Tail:
        windows = {layer: state.window(layer) for layer in self.layout.windows}
        return Tail(state.length, windows, {key: state.open_rows(*key) for key in COMPRESSORS})

    def _row(self, work: OnDevice, length: int) -> Array:
        """Logits that depend on what lies in the arena, read through the block table alone."""
        seen = self.memory.device[work.table].astype(np.int64).sum() * 31 + length
        return np.random.default_rng(int(seen)).standard_normal(CONFIG.vocab_size, dtype=np.float32)

    def logits(self, streams: Array) -> Array:
        return streams


def run(device: ToyDevice, sequence: Sequence, tokens: Array) -> Array:
    return device(tokens, [Segment(sequence, len(tokens))])


@pytest.mark.parametrize("length", [1, 255, 256, 300, 700])
def test_a_sequence_on_the_device_is_the_definition(length: int) -> None:
    device, tokens = ToyDevice(), random_tokens(length)
    with Sequence(device.pool) as sequence:
        for part in split(tokens, 130):
            run(device, sequence, part)
        assert_same(sequence, plain(tokens))
        child = sequence.fork()
        full = length // 256
        table = device.memory.table(child.pages)
        assert table.dtype == np.int32 and table[:full].tolist() == device.memory.table(sequence.pages)[:full].tolist()
        run(device, child, random_tokens(40, seed=3))
        assert_same(child, plain(np.concatenate([tokens, random_tokens(40, seed=3)])))
        assert_same(sequence, plain(tokens))
        device.pool.check_integrity([sequence.pages, child.pages])
        child.free()
    del child, sequence
    assert device.pool.live == 0 and len(device.memory.free) == 64


def test_steps_by_layers_and_steps_on_the_device_mix() -> None:
    device, tokens = ToyDevice(), random_tokens(400)
    sequence = Sequence(device.pool, tail_every=100)
    run(device, sequence, tokens[:150])
    step(sequence, tokens[150:290])
    run(device, sequence, tokens[290:])
    assert_same(sequence, plain(tokens))
    replay = sequence.truncate(180)
    run(device, sequence, np.concatenate([replay.astype(np.int64), tokens[180:]]))
    assert_same(sequence, plain(tokens))


def test_what_is_saved_comes_back_on_another_device() -> None:
    device, other, tokens = ToyDevice(), ToyDevice(), random_tokens(600)
    sequence = Sequence(device.pool)
    run(device, sequence, tokens)
    restored = Sequence.restore(other.pool, sequence.export())
    assert_same(restored, plain(tokens))
    more = random_tokens(20, seed=5)
    assert np.array_equal(run(device, sequence, more), run(other, restored, more))
    assert_same(restored, plain(np.concatenate([tokens, more])))


def test_an_arena_that_is_full_says_so_and_changes_nothing() -> None:
    device, tokens = ToyDevice(pages=2), random_tokens(300)
    sequence = Sequence(device.pool)
    run(device, sequence, tokens)
    with pytest.raises(CacheFull):
        run(device, sequence, random_tokens(300, seed=1))
    sequence.rollback()
    assert_same(sequence, plain(tokens))


def test_the_batch_runs_on_it() -> None:
    """A request alone, and among others: the engine knows nothing of where pages lie."""

    def answers(prompts: Seq[Array]) -> list[list[int]]:
        device = ToyDevice()
        engine = Driven(device, batched=True)
        params = SamplingParams(max_tokens=5, ignore_eos=True)
        states = [Sequence(device.pool) for _ in prompts]
        requests = [engine.submit(s, p.tolist(), params) for s, p in zip(states, prompts, strict=True)]
        found = [[e.sampled.token for e in engine.events(r) if e.sampled is not None] for r in requests]
        for state in states:
            state.free()
        return found

    prompts = [random_tokens(length, seed=length) for length in (3, 200, 257)]
    assert answers(prompts) == [answers([prompt])[0] for prompt in prompts]
