"""A store whose files the system does not let us open, map or read: real permissions, descriptors and memory. The
command fails with one line, every file stays, and when the cause is gone all is there."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers.children import ended, forked
from store_support import CHUNK, Runner, random_tokens, same

from foveal.store import contexts, eviction, gc, loading, saving, transfer
from foveal.store.errors import StoreError, StoreUnavailable
from foveal.store.index_file import INDEX
from foveal.store.objects import Context
from foveal.store.store import Store
from foveal.store.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
TOKENS, OTHER = random_tokens(1400), random_tokens(700, seed=4)
NOBODY = 65534


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "store"
    runner = Runner()
    with Store(folder) as store:
        store.packs.pack_bytes = 100_000
        saving.save(store, "gone", runner.read(OTHER), runner.fingerprint)
        saving.save(store, "a", runner.read(TOKENS, tail_every=1024), runner.fingerprint)
        contexts.delete(store, "gone")
    return folder


@pytest.fixture
def folder(saved: Path) -> Iterator[Path]:
    """A store of a user to whom, other than to root, the system says no, and who may reach it (not in pytest's folders,
    which are root's alone)."""
    with tempfile.TemporaryDirectory(prefix="foveal-limits-") as place:
        made = shutil.copytree(saved, Path(place) / "store")
        if os.geteuid() == 0:
            for path in [made.parent, made, *made.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
        yield made


def in_a_child(work: Callable[[], None], *, user: int | None = NOBODY) -> str:
    """What `work` raised, as the name of its class and its message, in a process of its own as `user`; "" for nothing.
    Anything but a `StoreError` comes with its traceback."""
    read, write = os.pipe()

    def tell() -> None:
        said = ""
        try:
            if user is not None and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            work()
        except StoreError as error:
            said = f"{type(error).__name__}: {error}"
        except BaseException:
            said = traceback.format_exc()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
            os.write(write, said.encode()[-60_000:])

    child = forked(tell)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    assert ended(child) == 0
    assert "Traceback" not in said, said
    return said


def snapshot(folder: Path) -> dict[str, bytes]:
    """All packs, as they are."""
    return {path.name: path.read_bytes() for path in (folder / "packs").iterdir()}


def _listed(store: Store) -> list[str]:
    return [context.name for context in store.contexts() if isinstance(context, Context)]


def _list(folder: Path) -> None:
    with Store(folder, create=False) as store:
        assert "a" in _listed(store)


def _load(folder: Path) -> None:
    runner = Runner()
    with Store(folder, create=False) as store:
        loaded = loading.load(store, store.context("a"), runner.fingerprint, runner, chunk=CHUNK)
        assert same(loaded.sequence, Runner().read(TOKENS))


def _collect(folder: Path) -> None:
    with Store(folder, create=False) as store:
        gc.collect(store, threshold=0.0)


def _save(folder: Path) -> None:
    runner = Runner()
    with Store(folder, create=False) as store:
        saving.save(store, "new", runner.read(OTHER[:300]), runner.fingerprint)


def _fork(folder: Path) -> None:
    with Store(folder, create=False) as store:
        contexts.fork(store, "a", f"b{len(store.contexts())}", at=900)


def _verify(folder: Path) -> None:
    with Store(folder, create=False) as store:
        report = verify(store)
        assert report.sound and report.contexts >= 1, report.problems


def _repair(folder: Path) -> None:
    with Store(folder, create=False) as store:
        verify(store, repair=True)


def _evict(folder: Path) -> None:
    with Store(folder, create=False) as store:
        eviction.evict(store, 50_000)


def _export(folder: Path) -> None:
    with Store(folder, create=False) as store:
        transfer.export(store, "a", io.BytesIO())


def _rebuild(folder: Path) -> None:
    with Store(folder, create=False) as store:
        store.repair()


WORK = (_list, _load, _collect, _save, _fork, _verify, _repair, _evict, _export, _rebuild)


def all_is_there(folder: Path) -> None:
    """As its owner, when the cause is gone."""

    def look() -> None:
        runner = Runner()
        with Store(folder, create=False) as store:
            assert "a" in _listed(store) and not (folder / "lost").exists()
            assert same(
                loading.load(store, store.context("a"), runner.fingerprint, runner, chunk=CHUNK).sequence,
                Runner().read(TOKENS),
            )
            report = verify(store)
            assert report.sound, report.problems

    assert in_a_child(look) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__[1:])
def test_a_pack_that_may_not_be_read(folder: Path, work: Callable[[Path], None]) -> None:
    """Each pack in turn; what needs it fails, the rest works, nothing is given up."""
    refused = 0
    for pack in sorted((folder / "packs").iterdir()):
        if not pack.exists():
            continue
        before = pack.read_bytes()
        os.chmod(pack, 0)
        said = in_a_child(lambda: work(folder))
        assert not said or said.startswith(("StoreUnavailable", "StoreError")), said
        assert "damaged" not in said and "delete" not in said
        refused += bool(said)
        assert pack.exists() and pack.read_bytes() == before
        os.chmod(pack, 0o600)
        all_is_there(folder)
    assert refused or work in (_list, _save)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__[1:])
@pytest.mark.parametrize("end", ["-wal", "-shm", ""])
@pytest.mark.parametrize("how", ["mode 0", "a folder", "of another user"])
def test_an_index_that_may_not_be_read(folder: Path, work: Callable[[Path], None], end: str, how: str) -> None:
    """While a process has the store open, so that the log holds what the index does not."""
    with Store(folder) as other:
        contexts.fork(other, "a", "c")
        for path in folder.rglob("*"):
            os.chown(path, NOBODY, NOBODY)
        path = folder / f"{INDEX}{end}"
        kept = folder / "kept"
        if how == "a folder":
            path.rename(kept)
            path.mkdir()
        else:
            os.chmod(path, 0o600 if how == "of another user" else 0)
        if how == "of another user":
            os.chown(path, 0, 0)
        before = snapshot(folder)
        said = in_a_child(lambda: _lists_both(folder) if work is _list else work(folder))
        assert not said or said.startswith(("StoreUnavailable", "StoreError")), said
        assert "damaged" not in said
        assert said or end == "-shm" or how == "a folder" or work is not _list
        after = snapshot(folder)
        assert all(after.get(name, b"").startswith(data) for name, data in before.items()) or not said
        if how == "a folder":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            kept.rename(path)
        if path.exists():
            os.chmod(path, 0o600)
    for path in folder.rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    if said:
        assert in_a_child(lambda: _lists_both(folder)) == ""
        all_is_there(folder)


def _lists_both(folder: Path) -> None:
    with Store(folder, create=False) as store:
        assert _listed(store) == ["a", "c"]


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__[1:])
def test_few_descriptors(folder: Path, saved: Path, work: Callable[[Path], None]) -> None:
    """From too few to open anything on, up to enough."""

    def starved(more: int) -> None:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        while os.open(os.devnull, os.O_RDONLY) <= used:
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2 + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        work(folder)

    said = [in_a_child(lambda more=more: starved(more)) for more in (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 40)]
    assert said[0] and not said[-1], said
    for text in filter(None, said):
        assert text.startswith(("StoreUnavailable", "StoreError")) and "damaged" not in text, text
    all_is_there(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__[1:])
def test_little_memory(folder: Path, work: Callable[[Path], None]) -> None:
    """Packs that cannot be mapped. What Python itself then says of its own memory is no answer of the store's."""

    def starved(more: int) -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.getrlimit(resource.RLIMIT_AS)[1]))
        try:
            work(folder)
        except MemoryError as error:
            raise StoreError("not enough memory") from error
        except RuntimeError as error:  # torch's
            if "allocate memory" not in str(error):
                raise
            raise StoreError("not enough memory") from error

    for more in (0, 20_000, 50_000, 100_000, 200_000, 400_000, 1_000_000, 4_000_000, 256 << 20):
        said = in_a_child(lambda more=more: starved(more))
        assert "damaged" not in said and "lost" not in said, said
    assert not said, "there was enough at last"
    all_is_there(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_work_as_root_does_not_take_a_store_from_its_owner(folder: Path) -> None:
    """Root deletes and compacts; then the owner may not read what root has made, and nothing is lost by trying."""
    with Store(folder) as store:
        runner = Runner()
        saving.save(store, "b", runner.read(OTHER), runner.fingerprint)
        contexts.delete(store, "b")
        gc.collect(store, threshold=0.0)
        for work in WORK:
            said = in_a_child(lambda work=work: work(folder))
            assert not said or said.startswith(("StoreUnavailable", "StoreError")), said
    for path in folder.rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    all_is_there(folder)


def test_the_error_says_which_file_and_why(folder: Path) -> None:
    error = StoreUnavailable(Path("/s/packs/1.pack"), PermissionError(13, "Permission denied"))
    assert "/s/packs/1.pack" in str(error) and "Permission denied" in str(error) and "nothing was changed" in str(error)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(folder: Path, kind: str) -> None:
    """A named pipe, or a folder, in place of any file of the store: whoever opens a pipe waits for another to do so."""
    for name in (*(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()), f"{INDEX}-wal"):
        path, away = folder / name, folder.with_name("away")
        there = path.exists()
        if there:
            path.rename(away)
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
        for work in (_list, _verify, _collect):
            in_a_child(work_in_time(partial(work, folder)))
        path.unlink() if kind == "pipe" else path.rmdir()
        if there:
            away.rename(path)
        assert in_a_child(partial(_load, folder)) == "", name


def work_in_time(work: Callable[[], None]) -> Callable[[], None]:
    """`work`, ended when it waits for longer than anything takes."""

    def timed() -> None:
        signal.alarm(20)
        try:
            work()
        finally:
            signal.alarm(0)

    return timed
