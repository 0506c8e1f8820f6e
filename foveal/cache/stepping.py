"""A step of a sequence, by the contract (`append` for every layer, `advance`) or by a backend that runs it whole.

A step is staged in `Step` and in page slots nobody reads, and committed by assigning a few attributes. Whatever fails
before that leaves the sequence as it was.
"""

from __future__ import annotations

import numpy as np

from foveal.cache.contract import LayerUpdate, OpenRows, Part
from foveal.cache.errors import CacheError
from foveal.cache.past import ids
from foveal.cache.pool import PagePool
from foveal.cache.reading import Reading
from foveal.cache.step import Step, check_update, own, token_ids
from foveal.cache.tail import Tail
from foveal.cache.work import InWork, Keeper
from foveal.config import PAGE_TOKENS
from foveal.formats import Array, DType


class Stepping(Reading):
    """A past that grows. Implements `foveal.cache.contract.SequenceState` on numpy arrays."""

    def __init__(
        self, pool: PagePool, *, dtype: DType | type[np.float32] | None, tail_every: int | None, views: bool
    ) -> None:
        if tail_every is not None and tail_every < 1:
            raise ValueError(f"tail_every is {tail_every}; it must be at least 1, or None")
        super().__init__(pool, dtype=dtype, views=views)
        self.tail_every = tail_every

    def window(self, layer: int) -> Array:
        """Raw KV rows [min(t, W - 1), c] of the last positions before t, oldest first."""
        self._alive()
        window = self._tail.windows[layer]
        if layer >= self.config.num_hidden_layers and self._step is not None:
            window = self._step.windows.get(layer, window)
        return window.astype(self.dtype, copy=False)

    def open_rows(self, layer: int, part: Part) -> OpenRows[Array]:
        """The compressor's open rows at t, fp32."""
        self._alive()
        return self._tail.rows[layer, part]

    def append(self, layer: int, update: LayerUpdate[Array]) -> None:
        """Take what the new tokens leave in `layer`; nothing counts before `advance`.

        The first layer of a step says how many tokens it has. An MTP block may be appended after it, any number of
        rows, also several times. Raises `CacheError` when the update does not fit the position, `CacheFull` when the
        pool cannot give the pages.
        """
        self._alive()
        mtp = layer >= self.config.num_hidden_layers
        if not mtp and (self._step is None or layer in self._step.windows):
            self._leave_work()
            self._begin(len(update.window))
        step = self._step
        if step is None:
            raise CacheError(f"MTP block {layer} was appended before the main layers of its step")
        if not mtp:
            check_update(self.layout, layer, update, self.length, step.count)
        keep = self.config.sliding_window - 1
        before = step.windows.get(layer, self._tail.windows[layer])
        rows = np.concatenate([before, update.window.astype(before.dtype)])
        # The network may reuse its buffers, and a slice would keep a whole chunk alive: own copies.
        window = rows[max(0, len(rows) - keep) :].copy()
        opened = {(layer, part): OpenRows(own(rows.kv), own(rows.gate)) for part, rows in update.open_rows.items()}
        for part, entries in update.entries.items():
            self._write(layer, part, entries)
        step.rows.update(opened)
        step.windows[layer] = window

    def advance(self, tokens: Array) -> None:
        """End the step: `tokens`, integers [n], are now part of the past.

        Raises `CacheError`, the step still staged, when a layer was not appended or `tokens` does not fit.
        """
        self._alive()
        step = self._step
        missing = [layer for layer in self.layout.layers if step is None or layer not in step.windows]
        if step is None or missing:
            raise CacheError(f"advance before every layer was appended; missing: {missing}")
        new_ids = token_ids(tokens, step.count, self.config.vocab_size)
        new = self._length + step.count
        none = np.empty((0, self.config.head_dim), self.layout.format.window_dtype)
        windows = {layer: step.windows.get(layer, none) for layer in self.layout.windows}
        self._take_pages(step, new_ids.tolist())
        old, self._step = self._length, None
        self._tail = Tail(new, windows, step.rows)
        self._keep_tail_after(old)

    # ------------------------------------------------------------------ a step that a backend runs whole

    def begin_work(self, count: int, keeper: Keeper) -> InWork:
        """Stage a step of `count` tokens to be run in the backend's own form: pages for it are there and known to that.

        `commit_work` ends it; `rollback`, or the next step, drops it. Raises `CacheFull`, and `LimitTooSmall` when the
        pool has a pager whose limit is not enough.
        """
        self._alive()
        if self.pool.pager is not None:
            self.pool.pager.check()
        step = self._begin(count)
        if self._work is None or not keeper.fits(self._work):
            tail = self._tail
            self._work = keeper.keep(self.pool)
            self._work.load(tail, self._pages)
        self._work.add_pages(step.new_pages)
        return self._work

    def commit_work(self, tokens: Array) -> None:
        """End a step begun by `begin_work`: `tokens`, valid integers [n], are now part of the past."""
        self._alive()
        step, work = self._step, self._work
        if step is None or work is None or len(tokens) != step.count:
            raise CacheError("commit_work without a begin_work for as many tokens")
        self._take_pages(step, tokens.tolist())
        work.commit(step.count)
        old, self._step, self._made_tail = self._length, None, None
        self._length += step.count
        self._keep_tail_after(old)

    def rollback(self) -> None:
        """Drop what `append` took since the last `advance`: the sequence is as before the step."""
        self._alive()
        step, self._step = self._step, None
        if step is None:
            return
        self._leave_work()
        self.pool.release(step.new_pages)
        if self._pages and not self._pages[-1].sealed:
            self._pages[-1].clear_after(self.layout, self.length % PAGE_TOKENS)
        self._limit_views(self.length)

    def pages_needed(self, count: int) -> int:
        """Pages a step of `count` tokens will acquire."""
        return -(-(self.length + count) // PAGE_TOKENS) - len(self._pages)

    def keep_tail(self) -> Tail:
        """Keep the tail of the current position, so that `truncate` can come back to it. Costs its `nbytes`."""
        self.rollback()
        pager = self.pool.pager
        self.add_tail(self._tail if pager is None else self._tail.copy(pager.keep))
        return self._tail

    # ------------------------------------------------------------------ inside

    def _begin(self, count: int) -> Step:
        self.rollback()
        needed = self.pages_needed(count)
        self._step = Step(count, self.pool.acquire(needed) if needed else [])
        return self._step

    def _take_pages(self, step: Step, new_ids: list[int]) -> None:
        """The step's pages are the sequence's now; those it filled are sealed. (One token makes no array, and mostly
        no list of pages: with a small model that would cost more than the step.)"""
        full, new = self._length // PAGE_TOKENS, self._length + step.count
        if step.new_pages:
            self._hold(self._pages.plus(step.new_pages), step.new_pages)
        self._open_tokens += new_ids
        for number in range(full, new // PAGE_TOKENS):
            self._pages[number].seal(ids(self._open_tokens[:PAGE_TOKENS]))
            del self._open_tokens[:PAGE_TOKENS]

    def _keep_tail_after(self, old: int) -> None:
        if self.tail_every and self._length // self.tail_every > old // self.tail_every:
            self.keep_tail()

    def _write(self, layer: int, part: Part, entries: Array) -> None:
        """Encode new entries into the slots behind those of the past, over as many pages as they need."""
        region = self.layout.region(layer, part)
        pages = self.pages
        rows = region.codec.encode(entries)
        first = self.config.entries_after(self.length, layer)
        done = 0
        while done < len(rows):
            number, slot = divmod(first + done, region.count)
            part_rows = rows[done : done + region.count - slot]
            pages[number].write(region, slot, part_rows)
            done += len(part_rows)
