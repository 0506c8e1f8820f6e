"""Packs as memory maps: opened when they are looked at, looked at for as long as their files are what they were.

A map reaches as far as its file did when it was made, and looking beyond the end of a file kills the process. So a file
is asked for its length before its map is looked at, and mapped anew when it has grown.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.cache.mapped import let_go_of
from foveal.store.errors import StoreUnavailable
from foveal.store.files import Disk
from foveal.store.records import ALIGN, Extent

if TYPE_CHECKING:
    from foveal.cache import Pager

LET_GO_BYTES = 256 << 20
"""Who reads a whole store holds no more of it in memory at a time."""


class PackMaps:
    """The maps of the packs whose files lie at `path(pack)`."""

    def __init__(self, path: Callable[[int], Path], disk: Disk) -> None:
        self._path, self._disk = path, disk
        self._maps: dict[int, PackMap] = {}
        self._living: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._pagers: weakref.WeakSet[Pager] = weakref.WeakSet()
        self._listing = threading.Lock()
        self._passed = 0

    def get(self, pack: int, end: int) -> PackMap | None:
        """A map of the pack that reaches to `end`, or None when the file does not, or is gone. Raises
        `StoreUnavailable`."""
        mapped = self._maps.get(pack)
        if mapped is not None and end <= mapped.size and mapped.serves(end):
            return mapped
        path = self._path(pack)
        try:
            mapped = PackMap(path, self._disk)
        except (FileNotFoundError, _Empty):
            return None
        except OSError as error:
            raise StoreUnavailable(path, error) from error
        with self._listing:
            self._living.add(mapped.map)
            pagers = list(self._pagers)
        for pager in pagers:
            pager.add(mapped.map)
        self._maps[pack] = mapped
        return mapped if end <= mapped.size else None

    def view(self, pack: int, start: int, end: int) -> memoryview | None:
        """Bytes of a pack; None when it does not reach so far, or is gone."""
        mapped = self.get(pack, end)
        return None if mapped is None or start < 0 else mapped.view[start:end]

    def forget(self, pack: int) -> None:
        """Map the pack anew when it is looked at again. Who looks at it now goes on doing so."""
        self._maps.pop(pack, None)

    def clear(self) -> None:
        """`forget` all of them."""
        self._maps.clear()

    def are_whole(self) -> bool:
        """Whether all mapped files are still as long as their maps: else looking at those kills the process."""
        with self._listing:
            return all(mapped.size() >= len(mapped) for mapped in self._living)

    # ------------------------------------------------------------------ memory

    def will_need(self, extents: Iterable[Extent]) -> None:
        """Ask the system to bring these records in, in as few and as long reads as they allow."""
        ranges: list[list[int]] = []
        for pack, offset, span in sorted(extents):
            if ranges and ranges[-1][0] == pack and offset - ranges[-1][2] < mmap.PAGESIZE * 16:
                ranges[-1][2] = offset + span
            else:
                ranges.append([pack, offset, offset + span])
        for pack, start, end in ranges:
            mapped = self.get(pack, end)
            if mapped is not None:
                mapped.will_need(start, end)

    def passed(self, nbytes: int) -> None:
        """Told by whoever reads a whole store: what was read is not needed again, and is let go of now and then."""
        self._passed += nbytes
        if self._passed >= LET_GO_BYTES:
            self._passed = 0
            for mapped in list(self._living):
                for _ in let_go_of(mapped):
                    pass

    def let_go_by(self, pager: Pager) -> None:
        """Let a pager let go of all maps, also of those to come, and when this object is gone."""
        with self._listing:
            self._pagers.add(pager)
            living = list(self._living)
        for mapped in living:
            pager.add(mapped)


class _Empty(Exception):
    """A file of no bytes cannot be mapped."""


class PackMap:
    """A private map of a file as long as it is now. Nobody writes into it; it is writable for the sake of tensors."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._descriptor = disk.open(path)
        try:
            self.size = os.fstat(self._descriptor).st_size
            if not self.size:
                raise _Empty
            self.map = disk.map(self._descriptor, path, self.size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.view = memoryview(self.map)

    def __del__(self) -> None:
        if hasattr(self, "view"):
            os.close(self._descriptor)

    def serves(self, end: int) -> bool:
        """Whether one may read up to `end`: beyond its file's end a map kills the process, and when the file was
        deleted another one may have got its name (a pack whose writer died before it counted)."""
        now = os.fstat(self._descriptor)
        return now.st_size >= end and (now.st_nlink > 0 or not self._path.exists())

    def will_need(self, start: int, end: int) -> None:
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_WILLNEED"):
            with contextlib.suppress(OSError):  # advice only
                self.map.madvise(mmap.MADV_WILLNEED, first, end - first)

    def find(self, magic: bytes, start: int) -> int:
        """The next aligned offset of `magic`, or the end."""
        while (start := self.map.find(magic, start)) >= 0:
            if start % ALIGN == 0:
                return start
            start += 1
        return self.size
