"""The store as what one works with: reading into it, going on, loading, listing, forking, sharing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_support import make_engine, same, stop_after, write_project

import foveal
from foveal.engine import Engine
from foveal.memory import InvalidName, MemoryNotFound, MemoryStore, NameTaken, StoreBusy
from foveal.store import contexts


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with make_engine() as engine:
        yield engine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with foveal.open_store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project")


def test_what_is_read_is_saved_listed_and_loaded(engine: Engine, store: MemoryStore, project: Path) -> None:
    with store.read(engine, project, name="p") as memory, store.load(engine, "p") as loaded:
        assert memory.complete and memory.resumed is None
        assert same(memory.sequence, loaded.sequence)
    assert [info.name for info in store.memories()] == ["p"]
    assert store.info("p").facts["tokens"] > 0


def test_reading_again_goes_on_where_it_was_stopped(engine: Engine, store: MemoryStore, project: Path) -> None:
    with store.read(engine, project, name="p", should_stop=stop_after(2)) as memory:
        kept = memory.length
        assert kept and not memory.complete
    with store.read(engine, project, name="p") as memory:
        assert memory.complete and memory.resumed is not None and memory.resumed.kept == kept
        with store.load(engine, "p") as loaded:
            assert same(memory.sequence, loaded.sequence)


def test_a_name_that_holds_something_else_is_refused_or_replaced(
    engine: Engine, store: MemoryStore, project: Path, tmp_path: Path
) -> None:
    store.read(engine, project, name="p").free()
    other = write_project(tmp_path / "other", seed=9)
    with pytest.raises(NameTaken, match="holds"):
        store.read(engine, other, name="p")
    assert store.info("p").facts["source"]["source"] == str(project)
    store.read(engine, other, name="p", replace=True).free()
    assert store.info("p").facts["source"]["source"] == str(other)


def test_one_reader_a_name(engine: Engine, store: MemoryStore, project: Path) -> None:
    with contexts.claim(store, "p"), pytest.raises(StoreBusy):
        store.read(engine, project, name="p")
    assert store.memories() == []


def test_forks_cost_no_run_and_go_with_their_names(engine: Engine, store: MemoryStore, project: Path) -> None:
    store.read(engine, project, name="p").free()
    assert store.fork("p", "q", at=100).facts["tokens"] == 100
    with store.load(engine, "p") as memory, store.load(engine, "q") as fork:
        assert fork.sequence.tokens.tolist() == memory.sequence.tokens.tolist()[:100]
    store.delete("q")
    assert [info.name for info in store.memories()] == ["p"]
    for wrong in (lambda: store.info("q"), lambda: store.load(engine, "q"), lambda: store.delete("q")):
        with pytest.raises(MemoryNotFound):
            wrong()
    with pytest.raises(InvalidName):
        store.fork("p", "../x")


def test_agents_share_a_context(engine: Engine, store: MemoryStore) -> None:
    with store.share(engine, "plan", "What we know so far.\n") as shared:
        head = shared.append("Tests are in tests/.\n", shared.head(), author="scout")
        with store.shared(engine, "plan") as seen:
            assert seen.head() == head


def test_a_prompt_starts_from_what_is_stored(engine: Engine, store: MemoryStore, project: Path) -> None:
    with store.read(engine, project, name="p") as memory:
        tokens = memory.sequence.tokens.tolist()
    start = engine.start([*tokens, tokens[0]], prefixes=store.prefixes())
    assert start.tokens == len(tokens)
    start.sequence.free()


def test_threads_use_one_memory_and_one_store(engine: Engine, store: MemoryStore, project: Path) -> None:
    with store.read(engine, project, name="p") as memory:
        alone = memory.recall("def f0_0(x):", max_tokens=8).text
        found: list[str] = []
        failed: list[BaseException] = []

        def work(number: int) -> None:
            try:
                found.append(memory.recall("def f0_0(x):", max_tokens=8).text)
                with store.load(engine, "p") as loaded, loaded.fork(100 + number) as fork:
                    assert fork.length == 100 + number
                store.fork("p", f"fork-{number}")
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed and found == [alone] * 6
    assert len(store.memories()) == 7
