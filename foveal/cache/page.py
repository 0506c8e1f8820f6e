"""Pages: what 256 tokens leave behind in all layers, in one allocation.

A page is written only while it is open, by the one sequence that owns it. Sealed, it never changes again, whoever
shares it, and its memory is never handed out a second time: a saved image, a native kernel or another process may go on
looking at the bytes for as long as it holds them, and they are given back when nobody does. A page starts as zeros, so
that the same tokens always give the same bytes.
"""

from __future__ import annotations

import numpy as np

from foveal.cache.errors import CacheError
from foveal.cache.layout import CacheLayout, Region
from foveal.cache.memory import HostBytes, PageBytes
from foveal.cache.work import PageCopy
from foveal.config import PAGE_TOKENS
from foveal.formats import Array


class Page:
    """One page over `memory`; `tokens` is None while open, then int32 [256], the token ids behind it.

    `references` counts the page lists and the blocks that hold it (`foveal.cache.page_list`). Pages are made and
    counted by a `PagePool` only. `slot` is what a backend keeps beside the page (`foveal.cache.work`); never saved.
    """

    __slots__ = ("__weakref__", "memory", "references", "slot", "tokens")

    def __init__(self, memory: PageBytes, tokens: Array | None = None) -> None:
        self.memory = memory
        self.tokens = tokens
        self.references = 1
        self.slot: PageCopy | None = None

    @property
    def data(self) -> Array:
        """The bytes, uint8 [page_bytes], not to be written into."""
        return self.memory.read()

    @property
    def address(self) -> int:
        """What tells its bytes from those of other pages of the pool (`PageBytes.address`)."""
        return self.memory.address

    @property
    def sealed(self) -> bool:
        """Full, and therefore immutable."""
        return self.tokens is not None

    def copy(self) -> Page:
        """An open page of the same bytes in the host's memory, of no pool."""
        return Page(HostBytes(self.data.copy()))

    def rows(self, region: Region) -> Array:
        """The region's bytes: uint8 [entries a page, entry_bytes], for reading; in place where the host sees them."""
        return self.data[region.offset : region.offset + region.nbytes].reshape(region.count, region.entry_bytes)

    def write(self, region: Region, slot: int, rows: Array) -> None:
        """Put encoded entries, uint8 [n, entry_bytes], into the slots from `slot` on.

        Raises `CacheError` when the page is sealed or the entries do not fit.
        """
        self._must_be_open()
        if slot + len(rows) > region.count:
            raise CacheError(f"{len(rows)} entries from slot {slot} do not fit a page's {region.count} slots")
        self.memory.write(region.offset + slot * region.entry_bytes, np.ascontiguousarray(rows))
        self.slot = None

    def fill(self, data: Array) -> None:
        """Take over the bytes of `data`, uint8 [page_bytes]."""
        self._must_be_open()
        self.memory.write(0, data)
        self.slot = None

    def clear_after(self, layout: CacheLayout, tokens: int) -> None:
        """Zero what lies behind the entries of the page's first `tokens` tokens (0 to 256)."""
        self._must_be_open()
        for region in layout.regions.values():
            used = layout.config.entries_after(tokens, region.layer) * region.entry_bytes
            self.memory.clear(region.offset + used, region.nbytes - used)
        self.slot = None

    def seal(self, tokens: Array) -> None:
        """The page is full: `tokens`, int32 [256], are what it stands for."""
        self._must_be_open()
        if tokens.shape != (PAGE_TOKENS,) or tokens.dtype != np.int32:
            raise CacheError(f"a page takes {PAGE_TOKENS} int32 token ids, not {tokens.dtype} {list(tokens.shape)}")
        self.tokens = tokens

    def _must_be_open(self) -> None:
        if self.sealed:
            raise CacheError("a full page never changes: write into the open page, or fork the sequence")
