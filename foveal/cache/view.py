"""Reading entries out of pages: in place, some of them, or all of them decoded.

What is special here: nothing in this module owns state. An `EntryTable` says where entries lie; an `EntryViews` holds
decoded copies that can be dropped at any moment and rebuilt from the pages.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.cache.errors import CacheError
from foveal.cache.layout import Region
from foveal.cache.page import Page
from foveal.model.state import Part


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
    device: torch.device

    def addresses(self) -> Tensor:
        """Addresses of the pages' first bytes, int64 [pages], on the CPU."""
        return torch.tensor([page.data.data_ptr() for page in self.pages], dtype=torch.int64)

    def rows(self, start: int, stop: int) -> Tensor:
        """Bytes of the entries start..stop-1: uint8 [stop - start, entry_bytes]. One copy unless in a single page."""
        size = self.region.count
        blocks = []
        for number in range(start // size, -(-stop // size)):
            first = number * size
            rows = self.pages[number].rows(self.region)
            blocks.append(rows[max(start - first, 0) : min(stop - first, size)])
        if not blocks:
            return self._none()
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def pick(self, indices: Tensor) -> Tensor:
        """Bytes of the entries `indices`, int64 [k]: uint8 [k, entry_bytes], reading each page concerned once.

        Raises `CacheError` when an index is not in 0..count-1.
        """
        if not len(indices):
            return self._none()
        if int(indices.min()) < 0 or int(indices.max()) >= self.count:
            raise CacheError(f"entries 0 to {self.count - 1} exist; {indices.min()} to {indices.max()} were asked for")
        order = torch.argsort(indices, stable=True)
        numbers, counts = torch.unique_consecutive(indices[order] // self.region.count, return_counts=True)
        slots = torch.split(indices[order] % self.region.count, counts.tolist())
        found = [
            self.pages[number].rows(self.region).index_select(0, slot)
            for number, slot in zip(numbers.tolist(), slots, strict=True)
        ]
        picked = torch.empty(len(indices), self.region.entry_bytes, dtype=torch.uint8, device=found[0].device)
        picked[order] = torch.cat(found)
        return picked

    def _none(self) -> Tensor:
        return torch.empty(0, self.region.entry_bytes, dtype=torch.uint8, device=self.device)


class EntryViews:
    """Decoded entries of one sequence, each decoded once: a growing buffer for each compressor that was read."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._buffers: dict[tuple[int, Part], Tensor] = {}
        self._filled: dict[tuple[int, Part], int] = {}

    def read(self, table: EntryTable) -> Tensor:
        """All entries of `table`, [count, e]. Decodes what the view does not hold yet."""
        key = (table.region.layer, table.region.part)
        done = self._filled.get(key, 0)
        buffer = self._buffer(key, done, table)
        if done < table.count:
            rows = table.rows(done, table.count)
            buffer[done : table.count] = table.region.codec.decode(rows, self.dtype)
            self._filled[key] = table.count
        return buffer[: table.count]

    def _buffer(self, key: tuple[int, Part], done: int, table: EntryTable) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is not None and len(buffer) >= table.count:
            return buffer
        # Written in later steps, in or out of inference mode, so it must be an ordinary tensor.
        with torch.inference_mode(False):
            room = table.count + table.count // 4 + table.region.count
            larger = torch.empty(room, table.region.codec.width, dtype=self.dtype, device=self.device)
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
        return sum(buffer.untyped_storage().nbytes() for buffer in self._buffers.values())
