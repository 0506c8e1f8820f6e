"""What the system refuses now is not damaged: every call fails once, or from then on, with every error that disks and
kernels give. The command ends with an error, nothing is given up, and when the cause is gone all is there."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from store_support import CHUNK, Runner, made_up_source_map
from store_workload import OTHER, TOKENS, Expected, check_states, reference

from foveal.store import contexts, eviction, gc, loading, saving, transfer, usage
from foveal.store.errors import StoreError
from foveal.store.files import Disk
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow

ERRORS = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EROFS)
SOAK = bool(os.environ.get("FOVEAL_SOAK"))


class FailingDisk(Disk):
    """The `first`-th call fails with `code`, and with `for_good` all after it."""

    def __init__(self, first: int, code: int, *, for_good: bool) -> None:
        self.first, self.code, self.for_good = first, code, for_good
        self.calls: list[str] = []
        self.off = False

    def _count(self, operation: str, path: Path) -> None:
        if self.off:
            return
        self.calls.append(operation)
        if len(self.calls) == self.first or (self.for_good and len(self.calls) > self.first):
            raise OSError(self.code, os.strerror(self.code), str(path))

    def step(self, operation: str, path: Path, size: int = 0) -> int:  # type: ignore[override]
        self._count(operation, path)
        return size

    def look(self, operation: str, path: Path) -> None:  # type: ignore[override]
        self._count(operation, path)


Change = tuple[Callable[[Store], object], Expected]
A, B = TOKENS[:600], TOKENS


def _load(store: Store, name: str) -> None:
    runner = Runner()
    loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK).sequence.free()
    contexts.read_map(store, store.context(name))


def _save(name: str, tokens: object) -> Callable[[Store], object]:
    places = made_up_source_map(len(tokens))  # type: ignore[arg-type]
    return lambda s: saving.save(s, name, reference(tokens), Runner().fingerprint, source_map=places)  # type: ignore[arg-type]


WORK: list[Change] = [
    (_save("a", A), {"a": A}),
    (lambda s: contexts.fork(s, "a", "b"), {"a": A, "b": A}),
    (_save("other", OTHER), {"a": A, "b": A, "other": OTHER}),
    (_save("a", B), {"a": B, "b": A, "other": OTHER}),
    (lambda s: contexts.fork(s, "a", "c", at=300), {"a": B, "b": A, "other": OTHER, "c": B[:300]}),
    (lambda s: contexts.delete(s, "other"), {"a": B, "b": A, "c": B[:300]}),
    (lambda s: _load(s, "a"), {"a": B, "b": A, "c": B[:300]}),
    (lambda s: gc.collect(s, threshold=0), {"a": B, "b": A, "c": B[:300]}),
    (verify, {"a": B, "b": A, "c": B[:300]}),
    (lambda s: usage.usage(s), {"a": B, "b": A, "c": B[:300]}),
    (lambda s: transfer.export(s, "b", io.BytesIO()), {"a": B, "b": A, "c": B[:300]}),
    (lambda s: s.repair(), {"a": B, "b": A, "c": B[:300]}),
    (lambda s: eviction.evict(s, 60_000), {"a": B, "b": A, "c": B[:300]}),
    (lambda s: _load(s, "b"), {"a": B, "b": A, "c": B[:300]}),
    (lambda s: contexts.delete(s, "a"), {"b": A, "c": B[:300]}),
]


def opened(folder: Path, disk: Disk) -> Store:
    store = Store(folder, durability="normal", disk=disk, wait=5)
    store.packs.pack_bytes = 150_000
    return store


def run(folder: Path, disk: FailingDisk, *, again: bool) -> list[Expected]:
    """The states that the store may be in at the end. `again`: what failed is done once more, and must succeed."""
    state: Expected = {}
    store = None
    for work, after in [(lambda s: None, state), *WORK]:
        for _ in range(2):
            try:
                store = store or opened(folder, disk)
                work(store)
                state = after
                break
            except StoreError as error:
                assert "damaged" not in str(error) and str(error).count("\n") == 0, error
                if not again:
                    disk.off = True
                    if store is not None:
                        store.close()
                    return [state, after]
                if _happened(store, after):
                    state = after
                    break
        else:
            pytest.fail(f"it failed twice, and only one call was refused: {disk.calls[disk.first - 1]}")
    disk.off = True
    assert store is not None
    store.close()
    return [state]


def _happened(store: Store | None, after: Expected) -> bool:
    """Whether a change that ended with an error was made all the same: it may have failed only behind its commit."""
    if store is None:
        return False
    found = {context.name: context.length for context in store.contexts()}  # type: ignore[union-attr]
    return found == {name: len(tokens) for name, tokens in after.items()}


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    disk = FailingDisk(10**9, 0, for_good=False)
    run(tmp_path_factory.mktemp("count") / "store", disk, again=False)
    return disk.calls


def test_every_kind_of_call_is_made(calls: list[str]) -> None:
    reading, changing = {"open", "map", "stat", "list", "read", "lock", "query"}, {"create", "write", "sync", "rename"}
    assert reading | changing | {"unlink", "commit", "mkdir", "sync folder"} <= set(calls)


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_every_call_fails(tmp_path: Path, calls: list[str], for_good: bool) -> None:
    """In the suite a part of the calls, each with an error drawn anew; with FOVEAL_SOAK all of them with all errors."""
    dice = random.SystemRandom()
    numbers = range(1, len(calls) + 1)
    cases = [(n, code) for n in numbers for code in ERRORS]
    if not SOAK:
        cases = [(n, dice.choice(ERRORS)) for n in dice.sample(numbers, 60)]
    for number, code in cases:
        folder = tmp_path / "store"
        shutil.rmtree(folder, ignore_errors=True)
        disk = FailingDisk(number, code, for_good=for_good)
        try:
            states = run(folder, disk, again=not for_good)
            check_states(folder, states, evicted=True)
            assert not (folder / "lost").exists(), "nothing was damaged, and nothing given up"
        except BaseException as error:
            error.add_note(f"call {number} ({calls[number - 1]}) fails with {errno.errorcode[code]}")
            raise
