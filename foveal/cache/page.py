"""Pages: what 256 tokens leave behind in all layers, in one allocation.

What is special here: a page is written only while it is open, by the one sequence that owns it. Sealed, it never
changes again, whoever shares it, and its memory is never handed out a second time: a saved image, a native kernel or
another process may go on looking at the bytes for as long as it holds the tensor, and the allocator takes them back
when nobody does. A page starts as zeros, so that the same tokens always give the same bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.cache.errors import CacheError
from foveal.cache.layout import CacheLayout, Region
from foveal.cache.slabs import Slot
from foveal.config import PAGE_TOKENS


class Page:
    """One page. `data` is uint8 [page_bytes]; `tokens` is None while open, then int32 [256], the token ids behind it.

    `references` counts the page lists and the blocks that hold it (`foveal.cache.page_list`). Pages are made and
    counted by a `PagePool` only. `slot` holds copies of what native kernels stream through (`foveal.cache.live`); it is
    never saved.
    """

    __slots__ = ("__weakref__", "data", "references", "slot", "tokens")

    def __init__(self, data: Tensor, tokens: Tensor | None = None) -> None:
        self.data = data
        self.tokens = tokens
        self.references = 1
        self.slot: Slot | None = None

    @property
    def sealed(self) -> bool:
        """Full, and therefore immutable."""
        return self.tokens is not None

    def rows(self, region: Region) -> Tensor:
        """The region's bytes in place: uint8 [entries a page, entry_bytes], no copy. For reading."""
        return self.data[region.offset : region.offset + region.nbytes].view(region.count, region.entry_bytes)

    def write(self, region: Region, slot: int, rows: Tensor) -> None:
        """Put encoded entries, uint8 [n, entry_bytes], into the slots from `slot` on.

        Raises `CacheError` when the page is sealed or the entries do not fit.
        """
        self._must_be_open()
        if slot + len(rows) > region.count:
            raise CacheError(f"{len(rows)} entries from slot {slot} do not fit a page's {region.count} slots")
        self.rows(region)[slot : slot + len(rows)] = rows
        self.slot = None

    def fill(self, data: Tensor) -> None:
        """Take over the bytes of `data`, uint8 [page_bytes]."""
        self._must_be_open()
        if self.data.device.type == data.device.type == "cpu":
            # torch would share out even so little among threads, and wait for them: for milliseconds on a busy machine
            self.data.numpy()[:] = data.numpy()
        else:
            self.data.copy_(data)
        self.slot = None

    def clear_after(self, layout: CacheLayout, tokens: int) -> None:
        """Zero what lies behind the entries of the page's first `tokens` tokens (0 to 256)."""
        self._must_be_open()
        for region in layout.regions.values():
            self.rows(region)[layout.config.entries_after(tokens, region.layer) :] = 0
        self.slot = None

    def seal(self, tokens: Tensor) -> None:
        """The page is full: `tokens`, int32 [256], are what it stands for."""
        self._must_be_open()
        if tokens.shape != (PAGE_TOKENS,) or tokens.dtype != torch.int32:
            raise CacheError(f"a page takes {PAGE_TOKENS} int32 token ids, not {tokens.dtype} {list(tokens.shape)}")
        self.tokens = tokens

    def _must_be_open(self) -> None:
        if self.sealed:
            raise CacheError("a full page never changes: write into the open page, or fork the sequence")
