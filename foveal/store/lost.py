"""The folder `lost`: what was given up and might hold more than we can read of it. Nothing in it is read again."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

from foveal.process.logs import logger
from foveal.store.errors import StoreUnavailable
from foveal.store.files import Disk

_log = logger(__name__)

LOST = "lost"


class Lost:
    """The folder at `path`, made when something goes there. Methods raise `OSError` unless they say otherwise."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path, self._disk = path, disk

    def sizes(self) -> dict[str, int]:
        """Name -> bytes, of what lies there. Raises `StoreUnavailable`."""
        try:
            return self._disk.sizes(self.path)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreUnavailable(self.path, error) from error

    def empty(self, names: list[str]) -> None:
        """Delete the files of these names, for good."""
        for name in names:
            self._disk.unlink(self.path / name)

    def free_name(self, name: str) -> Path:
        """A path in the folder, which is made if need be, that nothing has: `name`, or with a number behind it."""
        self._disk.make_folder(self.path)
        return next(
            path for n in itertools.count() if not (path := self.path / (f"{name}.{n}" if n else name)).exists()
        )

    def move(self, file: Path) -> None:
        """Move a file here."""
        self._disk.rename(file, self.free_name(file.name))
        _log.warning("given up and moved to %s: %s", self.path, file.name)
        self._disk.sync_folder(self.path)

    def keep(self, file: Path) -> None:
        """Give a file a second name here. Where a file can have only one name it is copied."""
        try:
            self._disk.link(file, self.free_name(file.name))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            self.keep_end(file, 0)
        self._disk.sync_folder(self.path)

    def keep_end(self, file: Path, start: int) -> None:
        """Write what lies behind `start` into a file of its own here."""
        with open(self._disk.open(file), "rb") as opened:
            opened.seek(start)
            self._disk.write_file(self.free_name(f"{file.name}.from-{start}"), opened.read(), sync=True)
