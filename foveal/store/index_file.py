"""The index of a store as a file: opened, opened again when another process has replaced it, made again when damaged.

Only an index that was read and found wrong is replaced, and it goes into the folder `lost`. One that the system does
not let us read now (`StoreUnavailable`) stays where it is, and so does everything else. Where a store's folder cannot
be written to, an index of our own in the system's temporary folder will do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from foveal.store import rebuild
from foveal.store.errors import IndexBehind, IndexDamaged, IndexDoubted, IndexOutdated, StoreError, StoreUnavailable
from foveal.store.files import Disk, exclusive
from foveal.store.index import Index
from foveal.store.index_schema import salvage
from foveal.store.lost import LOST
from foveal.store.pack_file import PACK_HEADER_BYTES
from foveal.store.packs import Packs
from foveal.store.repairs import Repairs
from foveal.store.rows import Legacy
from foveal.store.wal import log_problems

INDEX, LOCK = "index.sqlite", "lock"
REBUILT, REPLACED = "index.rebuilt.sqlite", "index.replaced.sqlite"
ENDS = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to the name of a file for those it keeps beside it."""
_CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


class IndexFile:
    """The index in `folder`. Not safe to use from several threads: the store's lock is held.

    `complete` is called, with the writer's lock held, when the index was made again: it is to write second copies of
    what has lost one. It may raise `OSError` and `StoreError`: then the next writer does it.
    """

    def __init__(
        self,
        folder: Path,
        packs: Packs,
        disk: Disk,
        durability: str,
        wait: float,
        repairs: Repairs,
        complete: Callable[[], object],
    ) -> None:
        self.folder, self.packs, self.disk, self._complete = folder, packs, disk, complete
        self.durability, self.wait, self.repairs = durability, wait, repairs
        self.path = folder / INDEX
        self.open: Index | None = None
        """The index as it is open now; what `current` gives is open and the latest."""
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        if self.open is not None:
            self.open.close()
            self.open = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def current(self) -> Index:
        """The index; opened again when another process has made it anew, made again when it is damaged.

        Raises `StoreUnavailable` when it cannot be read now, `StoreError` when it cannot be made.
        """
        if self.open is not None and (self._scratch is not None or not self.open.replaced()):
            return self.open
        if self.open is not None:
            self.open.close()
            self.open = None
        if self._try_to_open() is None:
            return self.opened()
        try:
            with exclusive(self.folder / LOCK, self.wait, disk=self.disk):
                if (problem := self._try_to_open()) is not None:
                    self.rebuild(problem if self.disk.stat(self.path) is not None else None)
        except (OSError, StoreError) as error:
            self._rebuild_elsewhere(error)
        return self.opened()

    def reopened(self) -> Index:
        """The index, opened anew."""
        self.close()
        return self.current()

    def repair(self, problem: IndexDamaged | None) -> None:
        """Make it again from the packs. Raises `StoreError` when the disk refuses."""
        try:
            with exclusive(self.folder / LOCK, self.wait, disk=self.disk):
                self.rebuild(problem)
        except (OSError, StoreError) as error:  # we cannot write here: an index of our own will do
            self._rebuild_elsewhere(error)

    def rebuild(self, problem: IndexDamaged | None) -> None:
        """As `repair`, with the writer's lock held. `problem` is what was wrong with it, if it was."""
        known = self._known()
        fresh = self.folder / REBUILT
        in_log = log_problems(Path(f"{self.path}-wal"), self.disk)
        hurt = rebuild.build(self.packs, fresh, self.disk, known)
        if self.open is not None:
            self.open.close()
            self.open = None
        # A process that died, or an older version of Foveal, has damaged nothing, and a doubt is no damage.
        keep = problem is not None and not isinstance(problem, (IndexBehind, IndexDoubted, IndexOutdated))
        self._replace(fresh, keep=keep)
        self.open = Index(self.path, self.disk, self.durability, wait=self.wait)
        self._set_apart(self.open.state().sizes)
        reasons = [*in_log, *([str(problem)] if keep else [])]
        for what, where in [*(("index", f"{reason}; it was made again from the packs") for reason in reasons), *hurt]:
            self.repairs.add(what, where)
        with contextlib.suppress(OSError, StoreError):
            self._complete()

    # ------------------------------------------------------------------ inside

    def _set_apart(self, sizes: dict[int, int]) -> None:
        """Packs of which nothing could be read at all."""
        for pack, size in self.packs.files().items():
            if pack not in sizes and size > PACK_HEADER_BYTES:
                self.packs.set_apart(pack)
                self.repairs.add("pack", f"nothing in {self.packs.path(pack).name} is a record; it is in {LOST} now")

    def opened(self) -> Index:
        if self.open is None:
            raise StoreError(f"the store {self.folder} is closed")
        return self.open

    def _known(self) -> Legacy | None:
        if self.open is not None:
            return self.open.legacy()
        return salvage(self.path) or salvage(self.folder / REPLACED)

    def _replace(self, fresh: Path, *, keep: bool) -> None:
        """Put `fresh` in its place. While it has no name yet there is no index, and whoever comes makes it again: an
        old index without its log would be a step back in time."""
        old = self.folder / REPLACED
        if self.disk.stat(self.path) is not None:
            self.disk.rename(self.path, old)
        for end in ("-wal", "-shm"):
            self.disk.unlink(Path(f"{self.path}{end}"))
        self.disk.rename(fresh, self.path)
        self.disk.sync_folder(self.folder)
        if keep and self.disk.stat(old) is not None:
            self.disk.rename(old, self.packs.lost.free_name(INDEX))
        self.disk.unlink(old)

    def _try_to_open(self) -> IndexDamaged | None:
        """Open the index, or say why it has to be made again. Raises `StoreUnavailable`."""
        try:
            self.open = Index(self.path, self.disk, self.durability, wait=self.wait)
        except IndexDamaged as error:
            return error
        except StoreUnavailable:
            if os.access(self.folder, os.W_OK):
                raise
            self._open_copy()
        return None

    def _open_copy(self) -> None:
        """Where nothing can be written, SQLite cannot take a log in: it takes it into a copy of both."""
        path = self._elsewhere()
        try:
            for end in ("", "-wal"):
                if self.disk.stat(Path(f"{self.path}{end}")) is not None:
                    shutil.copyfile(f"{self.path}{end}", f"{path}{end}")
        except OSError as error:
            raise StoreUnavailable(self.path, error) from error
        self.open = Index(path, Disk(), "off", wait=self.wait)
        self.open.read_only = "read-only"

    def _rebuild_elsewhere(self, problem: Exception) -> None:
        """An index for this process alone, where the store's folder cannot be written to. Raises what `problem` says
        when it is another."""
        cause = problem if isinstance(problem, OSError) else problem.__cause__
        code = getattr(cause, "errno", None)
        if isinstance(problem, StoreUnavailable) or (code not in _CANNOT_WRITE and not is_full(problem)):
            if isinstance(problem, OSError):
                raise StoreError(f"cannot make the index of the store {self.folder}: {problem}") from problem
            raise problem
        known = self._known()
        if self.open is not None:
            self.open.close()
            self.open = None
        path = self._elsewhere()
        rebuild.build(self.packs, path, Disk(), known)
        self.open = Index(path, Disk(), "off", wait=self.wait)
        self.open.read_only = str(problem)

    def _elsewhere(self) -> Path:
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="foveal-index-")
        path = Path(self._scratch.name) / INDEX
        for end in ENDS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}{end}")
        return path


def is_full(error: BaseException) -> bool:
    """Whether the disk, or one's share of it, is used up."""
    codes = {getattr(found, "errno", None) for found in (error, error.__cause__)}
    return bool(codes & {errno.ENOSPC, errno.EDQUOT}) or "is full" in str(error)
