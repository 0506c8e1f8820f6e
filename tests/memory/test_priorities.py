"""What a memory has run, and how urgent it is: reading and computing again wait for those who generate."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_support import CHUNK, make_engine, write_project

from foveal.batch import Kind, Priority
from foveal.engine import Engine, RunningAgain
from foveal.memory import Memory, open_store
from foveal.store import eviction
from foveal.store.recompute import recompute

INTERACTIVE, BACKGROUND = Priority.INTERACTIVE, Priority.BACKGROUND

Ran = set[tuple[Kind, Priority]]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with make_engine() as engine:
        yield engine


@pytest.fixture
def ran(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """What was asked of the engine."""
    seen: Ran = set()
    request = engine.batch.request

    def noting(*arguments: Any, **options: Any) -> Any:
        made = request(*arguments, **options)
        seen.add((made.kind, made.priority))
        return made

    monkeypatch.setattr(engine.batch, "request", noting)
    return seen


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project", files=20)


@pytest.fixture
def saved(engine: Engine, project: Path, tmp_path: Path) -> Path:
    with Memory.read(engine, project, name="m", root=tmp_path / "store", tail_every="none") as memory:
        assert memory.length > 1280, "or nothing is replayed"
        memory.save(root=tmp_path / "store")
    return tmp_path / "store"


def test_reading_and_syncing_run_in_the_background(engine: Engine, project: Path, ran: Ran) -> None:
    with Memory.read(engine, project) as memory:
        assert ran == {(Kind.READ, BACKGROUND)}
        ran.clear()
        (project / "new.py").write_text("new = 1\n" * 50)
        memory.sync("append")
        assert ran == {(Kind.SYNC, BACKGROUND)}
        ran.clear()
        (project / "m0.py").write_text("other = 1\n" * 50)
        memory.sync("rebuild")
        assert ran <= {(Kind.SYNC, BACKGROUND), (Kind.REPLAY, BACKGROUND)}


def test_who_loads_waits_for_a_window_only(engine: Engine, saved: Path, ran: Ran) -> None:
    with Memory.load(engine, saved / "m"):
        assert ran == {(Kind.REPLAY, INTERACTIVE)}


def test_lost_pages_are_computed_again_in_the_background(saved: Path, tmp_path: Path, engine: Engine, ran: Ran) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    assert eviction.evict(open_store(copy), 0).pages > 0
    with Memory.load(engine, copy / "m"):
        assert (Kind.RECOMPUTE, BACKGROUND) in ran
        assert ran <= {(Kind.RECOMPUTE, BACKGROUND), (Kind.REPLAY, INTERACTIVE)}


def test_a_prompt_that_starts_from_the_store_is_as_urgent_as_it_says(engine: Engine, saved: Path, ran: Ran) -> None:
    with Memory.load(engine, saved / "m") as memory:
        tokens = memory.sequence.tokens[:-3].tolist()
    engine.prefixes = open_store(saved).prefixes()
    for priority in (INTERACTIVE, BACKGROUND):
        ran.clear()
        with engine.submit(tokens, max_tokens=1, priority=priority) as job:
            assert job.result().reused_tokens > 0
        assert ran == {(Kind.REPLAY, priority), (Kind.GENERATE, priority)}


@pytest.mark.parametrize("sample", [None, 2])
def test_checking_pages_runs_in_the_background(engine: Engine, saved: Path, ran: Ran, sample: int | None) -> None:
    runner = RunningAgain(engine, replay=BACKGROUND)
    found = recompute(open_store(saved), ["m"], engine.fingerprint, runner, chunk=CHUNK, sample=sample)
    assert found.problems == [] and found.pages > 0
    assert (Kind.RECOMPUTE, BACKGROUND) in ran and {priority for _, priority in ran} == {BACKGROUND}
