"""Shared contexts: appended to by several, in several processes, and forked without a copy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.children import ended, forked
from memory_support import make_engine, same

from foveal.engine import Engine
from foveal.memory import (
    Conflict,
    CorruptMemory,
    Memory,
    ReadError,
    SharedContext,
    StoreError,
    memory_info,
    open_store,
)
from foveal.sources import SourceMap
from foveal.store import contexts
from foveal.store.objects import Context
from foveal.store.store import Store
from foveal.store.verify import verify

LONG = "".join(f"value_{n} = {n * n}\n" for n in range(300))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.fixture
def shared(engine: Engine, tmp_path: Path) -> Iterator[SharedContext]:
    with SharedContext.create(engine, "plan", "x = 1\n", author="ann", root=tmp_path / "store") as made:
        yield made
    assert engine.pool.live == 0


def test_append_moves_the_head_and_a_stale_one_is_a_conflict(engine: Engine, shared: SharedContext) -> None:
    first = shared.head()
    with SharedContext.open(engine, "plan", root=shared.store) as other:
        second = other.append("y = 2\n", first, author="bob")
        assert second == shared.head() != first
        before = shared.store.packs.written
        with pytest.raises(Conflict) as caught:
            shared.append("z = 3\n", first)
        assert caught.value.head == second and shared.store.packs.written == before
        third = shared.append("z = 3\n", second)
        assert other.head() == third
    with shared.fork() as fork:
        text = engine.tokenizer.decode(fork.sequence.tokens.tolist())
        assert text == "# file: ann-1\nx = 1\n# file: bob-2\ny = 2\n# file: shared-3\nz = 3\n"
        assert fork.locate(fork.length - 1) == ("shared-3", 1)
        with Memory.load(make_engine(), "plan", root=shared.store) as loaded:
            assert same(loaded.sequence, fork.sequence)
    assert verify(shared.store).sound


def test_two_who_append_at_once_do_not_lose_a_word(engine: Engine, shared: SharedContext) -> None:
    def write(number: int) -> None:
        with SharedContext.open(make_engine(), "plan", root=shared.store.folder) as mine:
            for turn in range(3):
                while True:
                    try:
                        mine.append(f"w{number}_{turn} = 0\n", mine.head(), author=f"t{number}")
                        break
                    except Conflict:
                        continue

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with shared.fork() as fork:
        text = engine.tokenizer.decode(fork.sequence.tokens.tolist())
        assert all(f"w{number}_{turn} = 0\n" in text for number in range(2) for turn in range(3))
        assert len(fork.places.documents) == 7


def test_loading_what_is_just_being_replaced_takes_the_new_one(
    engine: Engine, shared: SharedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append between two reads of a load takes away what the older state was made of."""
    read, appended = contexts.read_map, []

    def append_then_read(store: Store, context: Context) -> SourceMap:
        if not appended:
            appended.append(shared.append("y = 2\n", shared.head()))
            raise CorruptMemory("plan (its source map)", "both copies are damaged")
        return read(store, context)

    monkeypatch.setattr(contexts, "read_map", append_then_read)
    with Memory.load(engine, "plan", root=shared.store) as loaded:
        assert loaded.length == shared.length and len(loaded.places.documents) == 2

    def damaged(store: Store, context: Context) -> SourceMap:
        raise CorruptMemory("plan (its source map)", "both copies are damaged")

    monkeypatch.setattr(contexts, "read_map", damaged)
    with pytest.raises(CorruptMemory):
        Memory.load(engine, "plan", root=shared.store)


def test_forks_share_the_base(engine: Engine, shared: SharedContext) -> None:
    shared.append(LONG, shared.head())
    alone = engine.pool.live
    forks = [shared.fork() for _ in range(8)]
    for number, fork in enumerate(forks):
        engine.prefill(fork.sequence, [300 + number] * 5)
    assert engine.pool.live <= alone + 8, "each has an open page of its own, and no more"
    part = shared.fork(at=400)
    assert part.length == part.places.tokens == 400 and part.forked_from == ("plan", 400)
    forks[0].save("mine", root=shared.store)
    assert memory_info("mine", shared.store).facts["parent"] == "plan"
    for memory in (*forks, part):
        memory.free()
    with pytest.raises(StoreError, match="at token"):
        shared.fork(at=10**6)


def test_wait_returns_when_another_process_appends(shared: SharedContext) -> None:
    head = shared.head()
    assert shared.wait(head, timeout=0.1) == head

    def append() -> None:
        with SharedContext.open(make_engine(), "plan", root=open_store(str(shared.store.folder) + "/.")) as other:
            other.append("from = 'afar'\n", head)

    child = forked(append)
    assert shared.wait(head, timeout=60) != head
    assert ended(child) == 0


def test_what_is_refused(engine: Engine, shared: SharedContext) -> None:
    with pytest.raises(StoreError, match="already"):
        SharedContext.create(engine, "plan", "x\n", root=shared.store)
    with pytest.raises(ReadError):
        shared.append("", shared.head())
    with pytest.raises(ReadError):
        SharedContext.create(engine, "empty", "", root=shared.store)
