"""What was mended without being asked, until `verify` has told it.

A damaged copy is made whole by whoever comes across it, and nobody is stopped for that. But a disk that damages files
is worth knowing of: so it is written down, one JSON line each, and the next `foveal verify` tells it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from foveal.process.logs import logger
from foveal.store.errors import StoreUnavailable
from foveal.store.files import Disk
from foveal.store.records import Kind

_log = logger(__name__)

REPAIRS = "repairs.jsonl"
_MOST = 1 << 16
"""Bytes it may have: what damages so much is told by its beginning."""


class Repairs:
    """The list in `folder`. Where it cannot be written, this process alone remembers."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._path, self._disk = folder / REPAIRS, disk
        self._unwritten: list[tuple[str, str]] = []

    def add(self, what: str, where: str) -> None:
        """`what` was mended ("index", "tokens", ...), and `where` it lay. Never raises."""
        _log.warning("mended: %s (%s)", what, where)
        line = json.dumps([what, where]).encode() + b"\n"
        try:
            found = self._disk.stat(self._path)
            if found is None:
                os.close(self._disk.create(self._path))
            if found is None or found.st_size < _MOST:
                self._disk.append(self._path, line)
        except OSError:
            self._unwritten.append((what, where))

    def told(self) -> list[tuple[str, str]]:
        """All that was not told yet. Raises `StoreUnavailable`."""
        try:
            data = self._disk.read_file(self._path) or b""
        except OSError as error:
            raise StoreUnavailable(self._path, error) from error
        return [*(found for line in data.splitlines() if (found := _parse(line)) is not None), *self._unwritten]

    def forget(self) -> None:
        """What was told is told."""
        self._unwritten.clear()
        with contextlib.suppress(OSError):
            if self._disk.stat(self._path) is not None:
                self._disk.unlink(self._path)


class Hurt:
    """What is kept twice and was read from its second copy, or is there once: kind and key (of contexts: the label), to
    be made whole."""

    def __init__(self) -> None:
        self._found: set[tuple[Kind, bytes]] = set()

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, kind: Kind, key: bytes) -> None:
        self._found.add((kind, key))

    def take(self) -> set[tuple[Kind, bytes]]:
        """All of it, which is then forgotten."""
        found, self._found = self._found, set()
        return found


def _parse(line: bytes) -> tuple[str, str] | None:
    """None for a line that is not whole."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    right = isinstance(found, list) and len(found) == 2 and all(isinstance(text, str) for text in found)
    return (found[0], found[1]) if right else None
