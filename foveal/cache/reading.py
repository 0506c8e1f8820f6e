"""Reading the entries of a sequence: all of them, some of them, or in place.

Nothing that is read is state. Decoded copies belong to one sequence, can be dropped at any moment, and are made again
from the pages.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from foveal.cache.contract import Part
from foveal.cache.layout import CacheBytes
from foveal.cache.page_list import PageList
from foveal.cache.past import Past
from foveal.cache.pool import PagePool
from foveal.cache.step import Step
from foveal.cache.tail import Tail
from foveal.cache.view import EntryTable, EntryViews
from foveal.formats import Array, DType


class Reading(Past):
    """A past that can be read, that of a step in progress included."""

    def __init__(self, pool: PagePool, *, dtype: DType | type[np.float32] | None, views: bool) -> None:
        super().__init__(pool)
        self.dtype: DType = np.dtype(dtype) if dtype is not None else self.layout.format.window_dtype
        self._views = EntryViews(self.dtype) if views else None
        self._step: Step | None = None

    @property
    def pages(self) -> PageList:
        """The pages held, the open one last (when there is one), and then those a step in progress has acquired. Costs
        the same at any length; walk only over what is needed of it."""
        self._alive()
        return self._pages if self._step is None else self._pages.plus(self._step.new_pages)

    def entries(self, layer: int, part: Part) -> Array:
        """All entries [s, e] of a compressor, those of the current step's `append` included, in order.

        Valid until the next `append`; not to be written into.
        """
        table = self.table(layer, part)
        if self._views is not None:
            return self._views.read(table)
        return table.region.codec.decode(table.rows(0, table.count), self.dtype)

    def table(self, layer: int, part: Part) -> EntryTable:
        """Where a compressor's entries lie, those of the current step included once `layer` was appended.

        For kernels that read pages in place. Valid until the next `append`, `truncate` or `free`.
        """
        self._alive()
        tokens = self.length
        if self._step is not None and layer in self._step.windows:
            tokens += self._step.count
        count = self.config.entries_after(tokens, layer)
        return EntryTable(self.pages, self.layout.region(layer, part), count)

    def gather(self, layer: int, part: Part, indices: Array) -> Array:
        """The entries `indices`, integers of any shape [...], as [..., e], reading only those.

        Raises `CacheError` when an entry does not exist.
        """
        table = self.table(layer, part)
        rows = table.pick(indices.reshape(-1).astype(np.int64, copy=False))
        return table.region.codec.decode(rows, self.dtype).reshape(*indices.shape, table.region.codec.width)

    def drop_views(self) -> None:
        """Give back the memory of decoded copies; `entries` rebuilds them when asked."""
        self._alive()
        if self._views is not None:
            self._views.clear()

    def nbytes(self) -> CacheBytes:
        """Bytes held, by kind. Pages shared with others count in full; `PagePool.nbytes` counts each once."""
        needed = self.layout.bytes_at(self.length)
        kept = sum(tail.nbytes() for tail in self._kept if isinstance(tail, Tail) and tail is not self._tail)
        copies = sum(page.slot.nbytes for page in self._pages if page.slot is not None)
        return replace(
            needed,
            window=self._tail.window_bytes(),
            open_windows=self._tail.open_bytes(),
            reserved=len(self._pages) * self.layout.page_bytes - needed.entries,
            kept_tails=kept,
            views=(self._views.nbytes() if self._views is not None else 0) + copies,
        )

    def _limit_views(self, tokens: int) -> None:
        """Forget decoded entries behind those of the first `tokens` tokens."""
        if self._views is not None:
            for layer, part in self.layout.regions:
                self._views.limit((layer, part), self.config.entries_after(tokens, layer))
