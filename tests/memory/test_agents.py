"""Agents on one shared context: forks at any token, races, waiting, other processes, compaction and damage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import write_model
from helpers.children import ended, forked, killed
from memory_support import TINY, make_engine, same

from foveal.engine import Engine
from foveal.memory import Conflict, Memory, MemoryNotFound, SharedContext, StoreError, delete_memory, open_store
from foveal.store import contexts, eviction, gc
from foveal.store.records import Kind
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow

LONG = "".join(f"value_{n} = {n * n % 89}\n" for n in range(150))
PATIENCE = 120.0
"""Seconds that a test waits for another process on a busy machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 1, TINY)


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return Engine.open(model, threads=1)


@pytest.fixture
def shared(engine: Engine, tmp_path: Path) -> Iterator[SharedContext]:
    with SharedContext.create(engine, "plan", LONG, author="ann", root=tmp_path / "store") as made:
        yield made
    assert engine.pool.live == 0, "a test (or the code it tests) kept pages"


def in_process(work: Callable[[], object]) -> Callable[[], int]:
    """Run `work` in a process of its own; the result waits for its exit code."""
    child = forked(work)
    return lambda: ended(child)


def elsewhere(model: Path, folder: Path) -> SharedContext:
    """The shared context as another process has it: its own engine, its own store."""
    return SharedContext.open(Engine.open(model, threads=1), "plan", root=Store(folder))


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """`work` in so many threads, begun at once; what each returned or raised."""
    start, found = threading.Barrier(count), [object()] * count

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = work(number)
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return found


# ---------------------------------------------------------------------- forks


def test_a_fork_at_every_residue_is_a_fresh_read(engine: Engine, shared: SharedContext) -> None:
    """Mod 4 and mod 128, over the ends of two pages: tokens, pages, tail bit for bit, and no page but the open one."""
    with shared.fork() as whole, engine.new_sequence() as fresh:
        tokens = whole.sequence.tokens.tolist()
        engine.prefill(fresh, tokens[:894])
        live = engine.pool.live
        for at in range(895, 1025):
            engine.prefill(fresh, [tokens[at - 1]])
            with shared.fork(at) as fork:
                assert same(fork.sequence, fresh)
                assert fork.length == fork.places.tokens == at and fork.forked_from == ("plan", at)
                assert fork.sequence.pages[: at // 256] == whole.sequence.pages[: at // 256]
                assert engine.pool.live <= live + 2, "its open page, and perhaps one of the fresh read"


@pytest.mark.parametrize("at", [1, 63, 64, 255, 256, 257, 700, 1024, 1100])
def test_a_fork_on_the_reference_shares_pages_too(tmp_path: Path, at: int) -> None:
    """It runs the tokens since the last tail, and what comes out as it was is the very same page."""
    engine = make_engine()
    with SharedContext.create(engine, "plan", LONG, root=tmp_path / "store") as shared, shared.fork() as whole:
        live = engine.pool.live
        with shared.fork(at) as fork:
            assert engine.pool.live <= live + 1
            assert fork.sequence.pages[: at // 256] == whole.sequence.pages[: at // 256]
            with engine.new_sequence() as fresh:
                engine.prefill(fresh, whole.sequence.tokens[:at].tolist())
                assert same(fork.sequence, fresh)
        engine.pool.check_integrity([whole.sequence.pages, shared._memory.sequence.pages])


def test_forks_live_on_their_own(engine: Engine, shared: SharedContext) -> None:
    """A fork of a fork in the middle; the base goes on, is deleted, is closed: what was forked is what it was."""
    with shared.fork(800) as fork, fork.fork(300) as inner:
        before = fork.sequence.export(), inner.sequence.tokens
        shared.append("z = 0\n" * 200, shared.head())
        delete_memory("plan", shared.store)
        shared.free()
        after = fork.sequence.export()
        assert all((a == b).all() for a, b in zip(before[0].pages, after.pages, strict=True))
        assert fork.recall("value_3 =", max_tokens=3).text and inner.length == 300
        fork.save("fork", root=shared.store)
        with Memory.load(engine, "fork", root=shared.store) as loaded:
            assert same(loaded.sequence, fork.sequence)


def test_a_fork_copies_neither_tokens_nor_map(shared: SharedContext) -> None:
    """Of a million tokens they would be eight megabytes for each agent."""
    with shared.fork() as one, shared.fork() as other:
        one.recall("value_3 =", max_tokens=3)
        assert one.places._pieces[-1].starts is other.places._pieces[-1].starts
        pages = zip(one.sequence.pages[:-1], other.sequence.pages[:-1], strict=True)
        assert all(a.tokens is b.tokens and a.data is b.data for a, b in pages)


@pytest.mark.parametrize("at", [0, -1, 10**6, True, 1.5])
def test_a_fork_outside_is_refused(shared: SharedContext, at: Any) -> None:
    with pytest.raises(StoreError, match=rf"cannot fork plan at token {at}: it has {shared.length}"):
        shared.fork(at)


# ---------------------------------------------------------------------- races


def test_of_those_who_append_at_once_one_has(engine: Engine, shared: SharedContext) -> None:
    """On one object and on several; the others learn the new head, and with it they may try again."""
    others = [SharedContext.open(engine, "plan", root=shared.store) for _ in range(2)]
    everybody = [shared, shared, *others]
    for turn in range(4):
        head = shared.head()

        def add(number: int, turn: int = turn, head: str = head) -> str:
            return everybody[number].append(f"w{turn}_{number} = 1\n", head)

        found = together(4, add)
        won = [new for new in found if isinstance(new, str)]
        lost = [error for error in found if isinstance(error, Conflict)]
        assert len(won) == 1 and len(lost) == 3, found
        assert shared.head() == won[0] != head and {error.head for error in lost} == {won[0]}
        assert won[0] in str(lost[0])
    with shared.fork() as fork:
        assert len(fork.places.documents) == 5 and verify(shared.store).sound
    for other in others:
        other.free()


def test_processes_append_without_losing_a_word(model: Path, shared: SharedContext) -> None:
    folder = shared.store.folder

    def write(number: int) -> None:
        with elsewhere(model, folder) as mine:
            for turn in range(3):
                head = mine.head()
                while True:
                    try:
                        mine.append(f"w{number}_{turn} = 0\n", head, author=f"p{number}")
                        break
                    except Conflict as conflict:
                        head = conflict.head

    ends = [in_process(lambda number=number: write(number)) for number in range(3)]
    assert [end() for end in ends] == [0, 0, 0]
    with shared.fork() as fork:
        text = shared.engine.tokenizer.decode(fork.sequence.tokens.tolist())
        assert all(text.count(f"w{number}_{turn} = 0\n") == 1 for number in range(3) for turn in range(3))
        with shared.engine.new_sequence() as fresh:
            shared.engine.prefill(fresh, fork.sequence.tokens.tolist())
            assert same(fork.sequence, fresh)
    assert verify(shared.store).sound


# ---------------------------------------------------------------------- waiting


def test_all_who_wait_are_told(model: Path, engine: Engine, shared: SharedContext) -> None:
    """Threads on the same object and on others, and other processes."""
    head, folder = shared.head(), shared.store.folder

    def wait_elsewhere() -> None:
        with elsewhere(model, folder) as mine:
            assert mine.wait(head, timeout=PATIENCE) != head

    ends = [in_process(wait_elsewhere) for _ in range(2)]
    others = [SharedContext.open(engine, "plan", root=shared.store) for _ in range(2)]
    waiting = [shared, shared, *others]

    def wait_or_append(number: int) -> str:
        if number < 4:
            return waiting[number].wait(head, timeout=PATIENCE)
        time.sleep(0.3)
        return others[0].append("news = True\n", head)

    assert set(together(5, wait_or_append)) == {shared.head()} != {head}
    assert [end() for end in ends] == [0, 0]
    for other in others:
        other.free()


def test_waiting_ends_in_time(shared: SharedContext) -> None:
    head = shared.head()
    for timeout in (0.0, -1.0, 0.2):
        started = time.monotonic()
        assert shared.wait(head, timeout=timeout) == head
        assert max(timeout, 0) <= time.monotonic() - started < timeout + 20
    assert shared.wait("an older head") == head, "who is behind need not wait"
    with pytest.raises(StoreError, match="cannot wait for nan seconds"):
        shared.wait(head, timeout=float("nan"))


def test_waiting_for_what_goes_away_is_an_error(engine: Engine, shared: SharedContext) -> None:
    head = shared.head()
    other = SharedContext.open(engine, "plan", root=shared.store)

    def wait_or_close(number: int) -> str | None:
        if number < 2:
            return other.wait(head, timeout=PATIENCE)
        time.sleep(0.2)
        return other.free()

    *waited, closed = together(3, wait_or_close)
    assert closed is None and all(isinstance(error, StoreError) and "closed" in str(error) for error in waited)
    for use in (other.fork, lambda: other.append("x\n", head)):
        with pytest.raises(StoreError, match="closed here; open it again"):
            use()
    other.free()

    def wait_or_delete(number: int) -> str | None:
        if number < 2:
            return shared.wait(head, timeout=PATIENCE)
        time.sleep(0.2)
        return delete_memory("plan", shared.store)

    *waited, _ = together(3, wait_or_delete)
    assert all(isinstance(error, MemoryNotFound) for error in waited)
    for use in (shared.head, shared.fork, lambda: shared.append("x\n", head)):
        with pytest.raises(MemoryNotFound, match="plan"):
            use()


# ---------------------------------------------------------------------- the store meanwhile


def test_appending_while_another_process_compacts_and_evicts(model: Path, shared: SharedContext) -> None:
    """What is open is not evicted, what moves is found, and nothing is lost."""
    folder = shared.store.folder
    (folder / "go").touch()

    def clean() -> None:
        store = Store(folder)
        while (folder / "go").exists():
            gc.collect(store, threshold=0.0)
            eviction.evict(store, 0)

    end = in_process(clean)
    with elsewhere(model, folder) as other:
        head = shared.head()
        for turn in range(12):
            head = (shared, other)[turn % 2].append(f"turn_{turn} = {turn}\n" * 9, head)
            if turn % 4 == 1:
                with other.fork(500) as fork:
                    fork.save("side", root=other.store)
                delete_memory("side", other.store)
    (folder / "go").unlink()
    assert end() == 0 and verify(shared.store).sound
    with shared.fork() as fork, elsewhere(model, folder) as fresh, fresh.fork() as loaded:
        assert same(fork.sequence, loaded.sequence)
        text = shared.engine.tokenizer.decode(fork.sequence.tokens.tolist())
        assert all(text.count(f"turn_{turn} = {turn}\n") == 9 for turn in range(12))


def test_a_damaged_page_is_computed_again_before_it_is_appended_to(model: Path, shared: SharedContext) -> None:
    """Another process opens it, finds the damage, appends: the one that has it in memory goes on as well."""
    folder = shared.store.folder
    entry = shared.store.look(lambda index: index.objects.all(Kind.PAGE))[1]
    with open(folder / "packs" / "0000000001.pack", "r+b") as file:
        file.seek(entry.offset + 999)
        file.write(b"\xff\x00\xff")
    assert not verify(shared.store).sound
    with elsewhere(model, folder) as other:
        head = other.append("y = 2\n", other.head())
        assert verify(other.store).sound
    assert shared.append("z = 3\n", head) == shared.head()
    with shared.fork() as fork, shared.engine.new_sequence() as fresh:
        shared.engine.prefill(fresh, fork.sequence.tokens.tolist())
        assert same(fork.sequence, fresh)


def test_a_killed_writer_leaves_the_head_where_it_was(model: Path, shared: SharedContext) -> None:
    """Appending again and again, killed at any moment: what was acknowledged is there, and the next one goes on."""
    folder = shared.store.folder

    def write_on() -> None:
        with elsewhere(model, folder) as mine:
            for turn in range(10**6):
                mine.append(f"turn_{turn} = 0\n", mine.head())
                (folder / "acknowledged").write_text(str(turn))

    child = forked(write_on)
    began = time.monotonic()
    while not (folder / "acknowledged").exists() and time.monotonic() - began < PATIENCE:
        time.sleep(0.01)
    killed(child)
    done = int((folder / "acknowledged").read_text() or 0)
    head = shared.append("after = 1\n", shared.head())
    with shared.fork() as fork:
        text = shared.engine.tokenizer.decode(fork.sequence.tokens.tolist())
        assert f"turn_{done} = 0\n" in text and text.endswith("after = 1\n")
        assert contexts.head_of(shared.store, shared.store.context("plan")) == head
    assert verify(shared.store).sound
    assert open_store(folder).contexts() != []
