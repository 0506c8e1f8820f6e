"""One view of a context: its tokens are proved, and each page and tail is verified when it is asked for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from store_damage import flip
from store_support import Runner, random_tokens

from foveal.store import contexts, eviction, saving
from foveal.store.arrays import array_bytes
from foveal.store.context_view import ContextView
from foveal.store.errors import CorruptMemory
from foveal.store.records import HEADER_BYTES, Extent, Kind
from foveal.store.rows import Entry
from foveal.store.store import Store

TOKENS = random_tokens(1400, seed=8)
TAILS = (1024, 1400)


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def store(tmp_path: Path, runner: Runner) -> Iterator[Store]:
    with Store(tmp_path / "store", durability="off") as opened:
        with runner.read(TOKENS, tail_every=1024) as sequence:
            context = saving.save(opened, "a", sequence, runner.fingerprint)
        assert tuple(position for position, _ in context.tails) == TAILS
        yield opened


def view_of(store: Store, runner: Runner, name: str = "a") -> ContextView:
    return ContextView(store, store.context(name), runner.fingerprint.digest)


def entry_of(store: Store, kind: Kind, position: int) -> Entry:
    entries = store.look(lambda index: index.objects.all(kind))
    return next(entry for entry in entries if entry.position == position)


def damage(store: Store, extent: Extent) -> None:
    flip(store.packs.path(extent.pack), extent.offset + HEADER_BYTES + 3, 1)


def test_it_holds_what_was_saved(store: Store, runner: Runner) -> None:
    view = view_of(store, runner)
    assert np.array_equal(view.tokens, TOKENS) and view.tokens.dtype == np.int32
    pages = view.pages(runner.pool)
    with runner.read(TOKENS) as sequence:
        assert [array_bytes(page) for page in pages if page is not None] == [
            array_bytes(page.data) for page in sequence.pages[:5]
        ]
    assert [view.stored_page(number)[0] for number in range(5)] == [array_bytes(page) for page in pages]  # type: ignore[arg-type]
    for position in TAILS:
        tail = view.tail(runner.pool.layout, position)
        assert tail is not None and tail.position == position
        assert view.stored_tail(position) == tail.to_bytes()
    assert view.tail(runner.pool.layout, 512) is None and not view.damaged


def test_a_damaged_page_ends_the_first_pages(store: Store, runner: Runner) -> None:
    entry = entry_of(store, Kind.PAGE, 768)
    damage(store, entry.extents[0])
    view = view_of(store, runner)
    assert [page is None for page in view.pages(runner.pool)] == [False, False, True, False, False]
    assert view.damaged == [entry]
    assert view.stored_page(2) == (None, entry)
    assert len(view.first_pages(runner.pool, 5)) == 2 == len(view.first_pages(runner.pool, 2))


def test_an_evicted_page_is_not_damaged(store: Store, runner: Runner) -> None:
    eviction.evict(store, 0)
    view = view_of(store, runner)
    assert view.pages(runner.pool) == [None] * 5 and view.stored_page(0) == (None, None)
    assert view.tail(runner.pool.layout, 1400) is None and not view.damaged


def test_a_damaged_tail_is_noted(store: Store, runner: Runner) -> None:
    entry = entry_of(store, Kind.TAIL, 1024)
    damage(store, entry.extents[0])
    view = view_of(store, runner)
    assert view.tail(runner.pool.layout, 1024) is None and view.damaged == [entry]
    assert view.tail_reader(runner.pool.layout, 1024)() is None
    assert view.tail(runner.pool.layout, 1400) is not None


def test_a_tail_of_other_tokens_is_none_of_its(store: Store, runner: Runner) -> None:
    """A record that names another context's tail for its own end: whole, and behind other tokens."""
    with runner.read(random_tokens(1400, seed=9)) as sequence:
        other = saving.save(store, "b", sequence, runner.fingerprint)
    mixed = store.context("a").replace(tails=other.tails)
    view = ContextView(store, mixed, runner.fingerprint.digest)
    whole, entry = view.any_tail(runner.pool.layout, 1400)
    assert whole is not None
    assert view.tail(runner.pool.layout, 1400) is None and view.damaged == [entry]
    assert view.tail_reader(runner.pool.layout, 1400)() is None


def test_reading_a_tail_later_does_not_hold_the_view(store: Store, runner: Runner) -> None:
    view = view_of(store, runner)
    read, gone = view.tail_reader(runner.pool.layout, 1024), weakref.ref(view)
    del view
    gc.collect()
    assert gone() is None
    tail = read()
    assert tail is not None and tail.position == 1024


def test_tokens_that_are_lost_in_both_copies_are_said(store: Store, runner: Runner) -> None:
    contexts.fork(store, "a", "short", at=300)
    for extent in entry_of(store, Kind.NODE, 512).extents:
        damage(store, extent)
    with pytest.raises(CorruptMemory, match="its tokens"):
        view_of(store, runner)
    assert np.array_equal(view_of(store, runner, "short").tokens, TOKENS[:300])
