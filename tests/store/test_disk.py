"""Full disks and read-only ones, real ones: small file systems that are mounted for the test, where that is allowed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_support import CHUNK, Runner, random_tokens, same

from foveal import cache
from foveal.memory import StoreError
from foveal.store import contexts, eviction, gc, loading, saving
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = pytest.mark.slow

LEVELS = (0, 4, 32, 100, 220, 340, 520, 1000)
"""KiB that are left free."""
LENGTHS = {"base": 1300, "other": 900, "long": 2900}


def command(name: str, *words: str) -> None:
    """Run a tool that may stand where only root looks; skip the test when it is missing or fails."""
    tool = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if tool is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([tool, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join([name, *words])}: {done.stderr.strip()}")


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    if request.param == "tmpfs":
        command("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place))
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(12 << 20)
        command("mkfs.ext4", "-q", "-m", "0", "-b", "4096", "-O", "^has_journal", str(image))
        command("mount", "-o", "loop", str(image), str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


@pytest.fixture(scope="module")
def saved(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two contexts, one of them deleted in part."""
    folder = tmp_path_factory.mktemp("saved") / "store"
    with Store(folder) as store:
        for number, name in enumerate(("base", "other", "gone")):
            with runner.read(random_tokens(LENGTHS.get(name, 700), number)) as sequence:
                saving.save(store, name, sequence, runner.fingerprint)
        contexts.delete(store, "gone")
    return folder


def fill(disk: Path, kib: int) -> Path:
    """Leave `kib` KiB."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(disk)
        file_bytes = max(0, free.f_bavail * free.f_frsize - (kib << 10))
        while file_bytes > 0:  # what the file system's own records take may be missing
            try:
                os.posix_fallocate(file.fileno(), 0, file_bytes)
                break
            except OSError:
                file_bytes -= 4096
    return ballast


def _save(store: Store, runner: Runner) -> None:
    with runner.read(random_tokens(LENGTHS["long"], 9)) as sequence:
        saving.save(store, "long", sequence, runner.fingerprint)


def _fork(store: Store, runner: Runner) -> None:
    contexts.fork(store, "base", "fork", at=1111)


def _collect(store: Store, runner: Runner) -> None:
    gc.collect(store, threshold=0.0)


def _rebuild(store: Store, runner: Runner) -> None:
    store.repair()


def _delete(store: Store, runner: Runner) -> None:
    contexts.delete(store, "other")


def _evict(store: Store, runner: Runner) -> None:
    eviction.evict(store, 100_000)


OPERATIONS: tuple[Callable[[Store, Runner], None], ...] = (_save, _fork, _collect, _rebuild, _delete, _evict)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__[1:])
def test_a_full_disk(disk: Path, saved: Path, runner: Runner, operation: Callable[[Store, Runner], None]) -> None:
    """Whatever is left free: done, or refused with a message; what was acknowledged is whole, and space comes back."""
    folder, done = disk / "store", []
    for kib in LEVELS:
        shutil.copytree(saved, folder)
        store = Store(folder)
        ballast = fill(disk, kib)
        try:
            operation(store, runner)
            done.append(kib)
        except StoreError as error:
            assert "No space left" in str(error) or "full" in str(error), error
        _check(store, runner, operation in (_delete,) and kib in done)
        store.close()
        with Store(folder) as reopened:  # still full
            _check(reopened, runner, operation in (_delete,) and kib in done)
        ballast.unlink()
        with Store(folder) as reopened:
            names = _check(reopened, runner, operation in (_delete,) and kib in done)
            assert verify(reopened).sound
            assert ("long" in names) == (operation is _save and kib in done)
            assert ("fork" in names) == (operation is _fork and kib in done)
            assert reopened.packs.files() == reopened.index.state().sizes, "space of what failed was not given back"
        shutil.rmtree(folder)
    assert LEVELS[-1] in done
    assert operation is not _delete or done == list(LEVELS), "deleting must work on a full disk"


@functools.cache
def _right(runner: Runner, name: str, number: int) -> cache.Sequence:
    return runner.read(random_tokens(LENGTHS[name], number))


def _check(store: Store, runner: Runner, deleted: bool) -> set[str]:
    """Every context that was acknowledged is there, bit for bit."""
    names = set()
    for number, name in enumerate(("base", "other")):
        if name == "other" and deleted:
            continue
        loaded = loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK).sequence
        with loaded:
            assert same(loaded, _right(runner, name, number))
    for context in store.contexts():
        assert not isinstance(context, StoreError)
        names.add(context.name)
    return names


def test_a_disk_that_has_become_read_only(disk: Path, saved: Path, runner: Runner) -> None:
    folder = disk / "store"
    shutil.copytree(saved, folder)
    with Store(folder) as store:
        _fork(store, runner)
    command("mount", "-o", "remount,ro", str(disk))
    with Store(folder) as store:
        assert "fork" in _check(store, runner, False)
        assert verify(store).sound
        for operation in (_save, _delete):
            with pytest.raises(StoreError, match=r"(?i)read-only"):
                operation(store, runner)
    command("mount", "-o", "remount,rw", str(disk))
    with Store(folder) as store:
        _save(store, runner)
        assert verify(store).sound


def test_a_memory_limit_on_a_full_disk(disk: Path) -> None:
    """The scratch file needs room, and says so; what it had is given back."""
    pager = cache.Pager(cache.pager.resident() * 4, disk)
    pool = Runner().pool
    pool.memory = cache.HostMemory(pager)
    with pytest.raises(cache.CacheFull, match="No space left"):
        pool.acquire()
    assert not list(disk.glob("tmp*"))
