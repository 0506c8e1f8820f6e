"""The only place where a store touches the disk, but for what SQLite does with its own files.

Every call to the system is one call of a `Disk`. It is announced before it is made: changes to `Disk.step`, everything
else (opening, mapping, listing, locking, asking SQLite) to `Disk.look`. The tests put a `Disk` of theirs in place that
dies at the n-th step, or fails at the n-th call, and so walk through every point at which a process can die or the
system can refuse. Folders are 0700 and files 0600: what was read is the user's own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from foveal.store.errors import StoreBusy

Buffer = bytes | bytearray | memoryview
Operation = Literal["create", "write", "sync", "truncate", "unlink", "rename", "link", "mkdir", "sync folder", "commit"]
Look = Literal["open", "map", "stat", "list", "read", "lock", "query"]

_POLL = 0.02
"""Seconds between two looks at a lock that is taken."""


def open_file(path: Path, flags: int) -> int:
    """A descriptor of the regular file at `path`. Raises `OSError` for anything else that may have its name: whoever
    opens a named pipe would wait for ever."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_a_file(path)
    return descriptor


def not_a_file(path: Path) -> OSError:
    """What is said of a folder, a pipe or a socket where a file should be."""
    return OSError(errno.EINVAL, "it is not a file", str(path))


class Disk:
    """What the system does for a store. Every method raises `OSError` as the system does."""

    def step(self, operation: Operation, path: Path, size: int = 0) -> int:
        """Called before each change; returns how many of `size` bytes may be written. For tests to override."""
        return size

    def look(self, operation: Look, path: Path) -> None:
        """Called before each call that changes nothing. For tests to override."""

    # ------------------------------------------------------------------ looking

    def open(self, path: Path) -> int:
        """A descriptor for reading."""
        self.look("open", path)
        return open_file(path, os.O_RDONLY)

    def map(self, descriptor: int, path: Path, size: int) -> mmap.mmap:
        """A private map of the first `size` bytes of an open file."""
        self.look("map", path)
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)

    def stat(self, path: Path) -> os.stat_result | None:
        """None when there is no such file."""
        self.look("stat", path)
        try:
            return os.stat(path)
        except FileNotFoundError:
            return None

    def sizes(self, folder: Path) -> dict[str, int]:
        """Name -> bytes, of the files in a folder."""
        self.look("list", folder)
        found = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it went while we looked
                    found[entry.name] = entry.stat().st_size
        return found

    def read_file(self, path: Path) -> bytes | None:
        """The bytes of a small file; None when there is no such file."""
        self.look("read", path)
        try:
            with open(open_file(path, os.O_RDONLY), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    # ------------------------------------------------------------------ changing

    def create(self, path: Path) -> int:
        """A new empty file of mode 0600; returns its descriptor, open for reading and writing."""
        self.step("create", path)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, path: Path, pieces: Sequence[Buffer], offset: int) -> int:
        """Write `pieces` one after the other from `offset` on; returns how many bytes that was."""
        views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        size = sum(len(view) for view in views)
        left = allowed = self.step("write", path, size)
        for view in views:
            part = view[: max(left, 0)]
            while part:
                done = os.pwrite(descriptor, part, offset)
                part, offset, left = part[done:], offset + done, left - done
        if allowed < size:
            self.stop()
        return size

    def append(self, path: Path, data: bytes) -> None:
        """Write `data` behind what a file has, in one call."""
        self.step("write", path, len(data))
        descriptor = open_file(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def stop(self) -> None:
        """Called after a write that `step` cut short."""

    def sync(self, descriptor: int, path: Path) -> None:
        self.step("sync", path)
        os.fsync(descriptor)

    def truncate(self, path: Path, size: int) -> None:
        self.step("truncate", path)
        os.truncate(path, size)

    def unlink(self, path: Path) -> None:
        """Delete a file; one that is not there is as good as deleted."""
        self.step("unlink", path)
        path.unlink(missing_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        self.step("rename", new)
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        """A second name for a file."""
        self.step("link", new)
        os.link(old, new)

    def make_folder(self, folder: Path) -> None:
        """Make `folder` and its missing parents with mode 0700."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            self.step("mkdir", path)
            path.mkdir(mode=0o700, exist_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Make sure that the names in `folder` are on the disk."""
        self.step("sync folder", folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def commit(self, connection: sqlite3.Connection, path: Path) -> None:
        """End a transaction of SQLite, whose own writes are SQLite's to order."""
        self.step("commit", path)
        connection.execute("COMMIT")

    def write_file(self, path: Path, data: bytes, *, sync: bool) -> None:
        """Put a whole small file in place: written beside it, synced, renamed over it."""
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = self.create(temporary)
        try:
            self.write(descriptor, temporary, [data], 0)
            if sync:
                self.sync(descriptor, temporary)
        finally:
            os.close(descriptor)
        self.rename(temporary, path)
        if sync:
            self.sync_folder(path.parent)


# ---------------------------------------------------------------------- locks


@contextlib.contextmanager
def exclusive(path: Path, wait: float, doing: str = "", disk: Disk | None = None) -> Iterator[None]:
    """Hold the lock file `path` for oneself; the system lets go of it when the process ends, however it ends.

    Raises `StoreBusy` when another holds it for longer than `wait` seconds, naming its process where that is known and
    what it is `doing` (default: writing to the store that `path` lies in); `OSError` when the system refuses.
    """
    (disk or Disk()).look("lock", path)
    doing = doing or f"has been writing to the store {path.parent} for more than {wait:g} seconds"
    descriptor = _take(path, time.monotonic() + wait, doing)
    try:
        os.pwrite(descriptor, f"{os.getpid():<10}\n".encode(), 0)  # as long as before: truncating takes milliseconds
        yield
    finally:
        os.close(descriptor)


def _take(path: Path, end: float, doing: str) -> int:
    """The descriptor of the file at `path`, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(descriptor, fcntl.LOCK_EX):
                if time.monotonic() >= end:
                    holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
                    raise StoreBusy(f"another process (pid {holder}) {doing}; wait for it to end, or end it")
                time.sleep(_POLL)
            if _is_at(descriptor, path):  # else it was swept meanwhile, and others lock another one
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Presence:
    """Says that somebody uses `path`'s namesake, for as long as it is not closed and the process lives."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        while self._descriptor < 0:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # Who looks whether it is taken holds it for a moment, and who finds it free may have deleted it.
            while not _locked(descriptor, fcntl.LOCK_SH):
                time.sleep(_POLL / 10)
            if _is_at(descriptor, path):
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    @staticmethod
    def anywhere(path: Path) -> bool:
        """Whether anybody holds a `Presence` at `path`."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:  # we cannot tell
            return True
        try:
            return not _locked(descriptor, fcntl.LOCK_EX)
        finally:
            os.close(descriptor)

    @staticmethod
    def sweep(path: Path) -> None:
        """Delete the file at `path` if nobody holds a `Presence` there."""
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _locked(descriptor, fcntl.LOCK_EX):
                    path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
