"""Death at any point: after every single write, sync, rename and commit of a workload, in the middle of writes, by
`kill -9`, and with everything lost that was not synced. What was acknowledged is whole, nothing else is visible."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.children import ended, forked, killed
from store_support import CHUNK, Runner, random_tokens, same
from store_workload import OTHER, Expected, check, reference, workload

from foveal.store import contexts, gc, loading, saving
from foveal.store.errors import StoreError
from foveal.store.files import Disk
from foveal.store.objects import Context
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow


class Crash(BaseException):
    """The process died here."""


class DyingDisk(Disk):
    """Dies at the `last`-th step, a write after `part` of its bytes (0 to 1). Knows what was synced."""

    def __init__(self, last: int, part: float = 0.0) -> None:
        self.last, self.part = last, part
        self.steps: list[str] = []
        self.synced: dict[Path, int] = {}
        self.dead = False
        self.store: Store | None = None
        """Kept, so that nothing is closed (SQLite would tidy up) before what is left was copied."""

    def step(self, operation: str, path: Path, size: int = 0) -> int:  # type: ignore[override]
        if self.dead:
            raise Crash
        self.steps.append(operation)
        if len(self.steps) == self.last:
            self.dead = True
            if operation != "write":
                raise Crash
            return int(size * self.part)
        return size

    def stop(self) -> None:
        raise Crash

    def sync(self, descriptor: int, path: Path) -> None:
        self.step("sync", path)  # and no more: what would be lost is simulated
        self.synced[path] = os.fstat(descriptor).st_size

    def sync_folder(self, folder: Path) -> None:
        self.step("sync folder", folder)


def run(folder: Path, disk: DyingDisk) -> tuple[list[Expected], bool]:
    """What was acknowledged, one after the other, and whether it died."""
    known: list[Expected] = [{}]
    store = None
    try:
        store = disk.store = Store(folder, disk=disk)
        workload(store, known.append)
    except Crash:
        return known, True
    finally:
        if store is not None and not disk.dead:
            store.close()
    return known, False


def count_steps(tmp_path: Path) -> list[str]:
    disk = DyingDisk(last=10**9)
    run(tmp_path / "count", disk)
    return disk.steps


def leave(folder: Path) -> None:
    """What a dead process leaves: the files as they are."""
    copy = folder.with_name("left")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)


def test_every_point_of_a_workload(tmp_path: Path) -> None:
    steps = count_steps(tmp_path)
    assert {"create", "write", "sync", "unlink", "rename", "mkdir", "sync folder", "commit"} <= set(steps)
    for last in range(1, len(steps) + 1):
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        disk = DyingDisk(last)
        known, died = run(folder, disk)
        assert died
        if folder.exists():
            leave(folder)
            check(tmp_path / "left", known)


def test_every_write_torn(tmp_path: Path) -> None:
    steps = count_steps(tmp_path)
    dice = random.Random(1)
    for last in [number for number, step in enumerate(steps, start=1) if step == "write"]:
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        disk = DyingDisk(last, part=dice.choice([0.001, 0.3, 0.5, 0.99, 1.0]))
        known, _ = run(folder, disk)
        leave(folder)
        check(tmp_path / "left", known)


def test_losing_power_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Everything written and not synced is gone from the packs."""
    steps = count_steps(tmp_path)
    for last in range(1, len(steps) + 1, 3):
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        disk = DyingDisk(last)
        known, _ = run(folder, disk)
        if not (folder / "index.sqlite").exists():
            continue
        leave(folder)
        for pack in (tmp_path / "left" / "packs").iterdir():
            size = disk.synced.get(folder / "packs" / pack.name, 0)
            os.truncate(pack, min(size, pack.stat().st_size))
        check(tmp_path / "left", known)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9(tmp_path: Path) -> None:
    """A real process, really killed, again and again on one store."""
    folder, dice = tmp_path / "store", random.Random(2)
    texts = [random_tokens(700 + 300 * n, seed=n) for n in range(4)]
    lengths, sequences = [len(tokens) for tokens in texts], [Runner().read(tokens) for tokens in texts]
    acknowledged: dict[str, int] = {}
    for _ in range(25):
        acknowledged = _killed(folder, sequences, acknowledged, dice.uniform(0.002, 0.25))
        with Store(folder) as store:
            found = {context.name: lengths.index(context.length) for context in _whole(store)}
            pending = acknowledged.pop("?", None)
            for name in found.keys() ^ acknowledged.keys():
                assert name == f"c{pending}", f"{name} appeared or vanished"
            for name, number in found.items():
                assert acknowledged.get(name, number) == number or name == f"c{pending}"
                engine = Runner()
                loaded = loading.load(store, store.context(name), engine.fingerprint, engine, chunk=CHUNK)
                assert same(loaded.sequence, sequences[number]) and not loaded.replayed
            assert verify(store).sound
            acknowledged = found


def _whole(store: Store) -> list[Context]:
    found = store.contexts()
    assert not [context for context in found if isinstance(context, StoreError)]
    return [context for context in found if isinstance(context, Context)]


def _killed(folder: Path, sequences: list, before: dict[str, int], seconds: float) -> dict[str, int]:  # type: ignore[type-arg]
    """Changes by a child that is killed after some seconds: what it acknowledged, and under "?" what it was at."""
    read, write = os.pipe()
    child = forked(lambda: _work(folder, sequences, write, random.Random(time.time_ns())))
    os.close(write)
    time.sleep(seconds)
    killed(child)
    with open(read, "rb") as pipe:
        lines = pipe.read().decode().splitlines()
    state: dict[str, int] = dict(before)
    for line in lines:
        what, number, name = line.split()
        state.pop("?", None)
        if what == "begin":
            state["?"] = int(name[1:])
        elif what == "saved":
            state[name] = int(number)
        else:
            state.pop(name, None)
    return state


def _work(folder: Path, sequences: list, pipe: int, dice: random.Random) -> None:  # type: ignore[type-arg]
    runner = Runner()
    with Store(folder) as store:
        store.packs.pack_bytes = 400_000
        for _ in range(1000):
            number, name = dice.randrange(4), f"c{dice.randrange(3)}"
            os.write(pipe, f"begin {number} {name}\n".encode())
            if dice.random() < 0.3 and name in [context.name for context in _whole(store)]:
                contexts.delete(store, name)
                os.write(pipe, f"deleted 0 {name}\n".encode())
            else:
                saving.save(store, name, sequences[number], runner.fingerprint)
                os.write(pipe, f"saved {number} {name}\n".encode())
            if dice.random() < 0.2:
                gc.collect(store, threshold=0.1)


def test_two_processes_on_one_store(tmp_path: Path) -> None:
    """Both write, both read, at the same time; nobody is refused and nothing is lost."""
    folder = tmp_path / "store"
    tokens = random_tokens(600)
    sequence = Runner().read(tokens)

    def work(process: int) -> None:
        runner = Runner()
        with Store(folder, durability="off") as store:
            for turn in range(5):
                saving.save(store, f"p{process}-{turn}", sequence, runner.fingerprint)
                contexts.fork(store, f"p{process}-{turn}", f"f{process}-{turn}", at=100 + turn)
                for context in _whole(store):
                    if context.length == 600:
                        loaded = loading.load(store, context, runner.fingerprint, runner, chunk=CHUNK)
                        assert same(loaded.sequence, sequence)
                        loaded.sequence.free()
                gc.collect(store, threshold=0)

    children = [forked(partial(work, process)) for process in range(3)]
    assert [ended(child) for child in children] == [0, 0, 0]
    with Store(folder) as store:
        assert len(_whole(store)) == 30 and verify(store).sound


def test_sqlite_is_there_with_wal(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        saving.save(store, "a", reference(OTHER), Runner().fingerprint)
        connection = sqlite3.connect(store.folder / "index.sqlite")
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()
