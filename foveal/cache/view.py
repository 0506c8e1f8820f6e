"""Reading entries out of pages: in place, some of them, or all of them decoded.

Nothing in this module owns state. An `EntryTable` says where entries lie; an `EntryViews` holds decoded copies that can
be dropped at any moment and rebuilt from the pages.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from foveal.cache.contract import Part
from foveal.cache.errors import CacheError
from foveal.cache.layout import Region
from foveal.cache.page import Page
from foveal.formats import Array, DType


@dataclass(frozen=True)
class EntryTable:
    """Where the entries of one compressor lie: what a page table is to a kernel that reads in place.

    Entry s is the `region.entry_bytes` bytes of ``pages[s // region.count].data`` from byte
    ``region.offset + (s % region.count) * region.entry_bytes`` on. `count` entries are there,
    those of a step in progress included.
    """

    pages: Seq[Page]
    region: Region
    count: int

    def addresses(self) -> Array:
        """Addresses of the pages (`PageBytes.address`), int64 [pages]: a block table."""
        return np.array([page.address for page in self.pages], dtype=np.int64)

    def rows(self, start: int, stop: int) -> Array:
        """Bytes of the entries start..stop-1: uint8 [stop - start, entry_bytes]. One copy unless in a single page."""
        size = self.region.count
        blocks = []
        for number in range(start // size, -(-stop // size)):
            first = number * size
            rows = self.pages[number].rows(self.region)
            blocks.append(rows[max(start - first, 0) : min(stop - first, size)])
        if not blocks:
            return self._none()
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def pick(self, indices: Array) -> Array:
        """Bytes of the entries `indices`, int64 [k]: uint8 [k, entry_bytes], reading each page concerned once.

        Raises `CacheError` when an index is not in 0..count-1.
        """
        if not len(indices):
            return self._none()
        if int(indices.min()) < 0 or int(indices.max()) >= self.count:
            raise CacheError(f"entries 0 to {self.count - 1} exist; {indices.min()} to {indices.max()} were asked for")
        order = np.argsort(indices, kind="stable")
        numbers, starts = np.unique(indices[order] // self.region.count, return_index=True)
        slots = np.split(indices[order] % self.region.count, starts[1:])
        found = [
            self.pages[number].rows(self.region)[slot] for number, slot in zip(numbers.tolist(), slots, strict=True)
        ]
        picked = np.empty((len(indices), self.region.entry_bytes), dtype=np.uint8)
        picked[order] = np.concatenate(found)
        return picked

    def _none(self) -> Array:
        return np.empty((0, self.region.entry_bytes), dtype=np.uint8)


class EntryViews:
    """Decoded entries of one sequence, each decoded once: a growing buffer for each compressor that was read."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self._buffers: dict[tuple[int, Part], Array] = {}
        self._filled: dict[tuple[int, Part], int] = {}

    def read(self, table: EntryTable) -> Array:
        """All entries of `table`, [count, e]. Decodes what the view does not hold yet."""
        key = (table.region.layer, table.region.part)
        done = self._filled.get(key, 0)
        buffer = self._buffer(key, done, table)
        if done < table.count:
            rows = table.rows(done, table.count)
            buffer[done : table.count] = table.region.codec.decode(rows, self.dtype)
            self._filled[key] = table.count
        return buffer[: table.count]

    def _buffer(self, key: tuple[int, Part], done: int, table: EntryTable) -> Array:
        buffer = self._buffers.get(key)
        if buffer is not None and len(buffer) >= table.count:
            return buffer
        room = table.count + table.count // 4 + table.region.count
        larger = np.empty((room, table.region.codec.width), dtype=self.dtype)
        if buffer is not None:
            larger[:done] = buffer[:done]
        self._buffers[key] = larger
        return larger

    def limit(self, key: tuple[int, Part], count: int) -> None:
        """Entries from `count` on are no longer what the pages hold."""
        if self._filled.get(key, 0) > count:
            # A new buffer next time: a reader may still hold a slice of this one.
            self._filled[key] = count
            self._buffers[key] = self._buffers[key][:count]

    def clear(self) -> None:
        """Drop everything."""
        self._buffers.clear()
        self._filled.clear()

    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum((buffer if buffer.base is None else buffer.base).nbytes for buffer in self._buffers.values())
