"""One sequence: pages and tail (the contract stands in `foveal.cache`).

What is special here: a step is staged in `Step` and in page slots nobody reads, and `advance` commits it by assigning
four attributes. Everything else asks the length. A network that runs a whole step natively takes the sequence's `Live`
form instead (`begin_live`, `commit_live`); the tail is then made from that when it is next asked for.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from foveal import _native
from foveal.cache.errors import CacheError, SequenceFreed
from foveal.cache.image import SequenceImage, check_image
from foveal.cache.layout import CacheBytes
from foveal.cache.live import Live
from foveal.cache.page import Page
from foveal.cache.page_list import PageList
from foveal.cache.pool import PagePool
from foveal.cache.step import Step, check_update, own, token_ids
from foveal.cache.tail import LaterTail, Tail
from foveal.cache.view import EntryTable, EntryViews
from foveal.config import PAGE_TOKENS
from foveal.model.state import LayerUpdate, OpenRows, Part


class Sequence:
    """The past of one sequence in pages of `pool`. Implements `foveal.model.state.SequenceState`.

    `dtype` is what `window` and `entries` come back in (default: the format's window dtype); give the network's compute
    dtype. `tail_every`: keep a tail whenever a step passes a multiple of so many tokens. `views` off trades speed of
    `entries` for memory. Not to be used from two threads at once.

    Every method raises `SequenceFreed` after `free`.
    """

    def __init__(
        self, pool: PagePool, *, dtype: torch.dtype | None = None, tail_every: int | None = None, views: bool = True
    ) -> None:
        if tail_every is not None and tail_every < 1:
            raise ValueError(f"tail_every is {tail_every}; it must be at least 1, or None")
        self.pool = pool
        self.layout = pool.layout
        self.config = pool.layout.config
        self.dtype = dtype or self.layout.format.window_dtype
        self.tail_every = tail_every
        self.origin = ""
        """Who computed the past: "" for engines like this one, else a name for whoever the pages were taken from. All
        that is computed on top of it is theirs too, so it goes with every fork, image and replay."""
        self._views = EntryViews(self.dtype, pool.device) if views else None
        self._made_tail: Tail | None = Tail.empty(self.layout, pool.device)
        """The tail, unless steps have gone through `_live` since it was made."""
        self._length = 0
        self._live: Live | None = None
        self._kept: list[Tail | LaterTail] = [self._tail]
        self._pages = PageList()
        self._open_tokens: list[int] = []
        self._step: Step | None = None
        self._freed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        state = "freed" if self._freed else f"{self.length} tokens, {len(self._pages)} pages"
        return f"<Sequence: {state}, {self.layout.format}>"

    # ------------------------------------------------------------------ what is there

    @property
    def length(self) -> int:
        """Tokens so far, t."""
        self._alive()
        return self._length

    @property
    def position(self) -> int:
        """The absolute position of the next token: `length`."""
        return self.length

    @property
    def tokens(self) -> Tensor:
        """All token ids so far, int32 [t]. A copy."""
        self._alive()
        full = [page.tokens for page in self._pages if page.tokens is not None]
        return torch.cat([*full, _ids(self._open_tokens)])

    def token_range(self, first: int, after: int) -> Tensor:
        """Ids of the tokens `first` to `after` (not included), int32, without a copy of all the others."""
        self._alive()
        page = first // PAGE_TOKENS
        start, pages = page * PAGE_TOKENS, self._pages[page : -(-after // PAGE_TOKENS)]
        full = [page.tokens for page in pages if page.tokens is not None]
        return torch.cat([*full, _ids(self._open_tokens)])[first - start : after - start]

    @property
    def pages(self) -> PageList:
        """The pages held, the open one last (when there is one), and then those a step in progress has acquired. Costs
        the same at any length; walk only over what is needed of it."""
        self._alive()
        return self._pages if self._step is None else self._pages.plus(self._step.new_pages)

    @property
    def tail(self) -> Tail:
        """The tail at `length`."""
        self._alive()
        return self._tail

    @property
    def kept_tails(self) -> tuple[Tail | LaterTail, ...]:
        """The tails `truncate` can go back to, by ascending position; the first is the empty one at 0."""
        self._alive()
        return tuple(self._kept)

    def nbytes(self) -> CacheBytes:
        """Bytes held, by kind. Pages shared with others count in full; `PagePool.nbytes` counts each once."""
        needed = self.layout.bytes_at(self.length)
        kept = sum(tail.nbytes() for tail in self._kept if isinstance(tail, Tail) and tail is not self._tail)
        return replace(
            needed,
            window=self._tail.window_bytes(),
            open_windows=self._tail.open_bytes(),
            reserved=len(self._pages) * self.layout.page_bytes - needed.entries,
            kept_tails=kept,
            views=(self._views.nbytes() if self._views is not None else 0) + self._slot_bytes(),
        )

    @property
    def _tail(self) -> Tail:
        """The tail at the present length; made from the live form when steps have gone through that."""
        if self._made_tail is None:
            assert self._live is not None
            self._made_tail = self._live.tail(len(self.config.compress_ratios))
        return self._made_tail

    @_tail.setter
    def _tail(self, tail: Tail) -> None:
        self._made_tail, self._length, self._live = tail, tail.position, None

    def _slot_bytes(self) -> int:
        return sum(page.slot.nbytes for page in self._pages if page.slot is not None)

    # ------------------------------------------------------------------ a step (SequenceState)

    def window(self, layer: int) -> Tensor:
        """Raw KV rows [min(t, W - 1), c] of the last positions before t, oldest first."""
        self._alive()
        window = self._tail.windows[layer]
        if layer >= self.config.num_hidden_layers and self._step is not None:
            window = self._step.windows.get(layer, window)
        return window.to(self.dtype)

    def open_rows(self, layer: int, part: Part) -> OpenRows:
        """The compressor's open rows at t, fp32."""
        self._alive()
        return self._tail.rows[layer, part]

    def append(self, layer: int, update: LayerUpdate) -> None:
        """Take what the new tokens leave in `layer`; nothing counts before `advance`.

        The first layer of a step says how many tokens it has. An MTP block may be appended after it, any number of
        rows, also several times. Raises `CacheError` when the update does not fit the position, `CacheFull` when the
        pool cannot give the pages.
        """
        self._alive()
        mtp = layer >= self.config.num_hidden_layers
        if not mtp and (self._step is None or layer in self._step.windows):
            self._leave_live()
            self._begin(len(update.window))
        step = self._step
        if step is None:
            raise CacheError(f"MTP block {layer} was appended before the main layers of its step")
        if not mtp:
            check_update(self.layout, layer, update, self.length, step.count)
        with torch.inference_mode(False), torch.no_grad():
            keep = self.config.sliding_window - 1
            before = step.windows.get(layer, self._tail.windows[layer])
            rows = torch.cat([before, update.window.detach().to(before)])
            window = rows[max(0, len(rows) - keep) :].clone()
            # The network may reuse its buffers, and a slice would keep a whole chunk alive: own copies.
            opened = {
                (layer, part): OpenRows(own(rows.kv, before), own(rows.gate, before))
                for part, rows in update.open_rows.items()
            }
            for part, entries in update.entries.items():
                self._write(layer, part, entries.detach())
        step.rows.update(opened)
        step.windows[layer] = window

    def entries(self, layer: int, part: Part) -> Tensor:
        """All entries [s, e] of a compressor, those of the current step's `append` included, in order.

        Valid until the next `append`; not to be written into.
        """
        table = self.table(layer, part)
        if self._views is not None:
            return self._views.read(table)
        return table.region.codec.decode(table.rows(0, table.count), self.dtype)

    def advance(self, tokens: Tensor) -> None:
        """End the step: `tokens`, integers [n], are now part of the past.

        Raises `CacheError`, the step still staged, when a layer was not appended or `tokens` does not fit.
        """
        self._alive()
        step = self._step
        missing = [i for i in range(self.config.num_hidden_layers) if step is None or i not in step.windows]
        if step is None or missing:
            raise CacheError(f"advance before every layer was appended; missing: {missing}")
        ids = token_ids(tokens, step.count, self.config.vocab_size)
        new = self._length + step.count
        none = torch.empty_like(self._tail.windows[-1][:0])
        windows = tuple(step.windows.get(layer, none) for layer in range(len(self.config.compress_ratios)))
        self._take_pages(step, ids.tolist())
        old, self._step = self._length, None
        self._tail = Tail(new, windows, step.rows)
        self._keep_tail_after(old)

    def _take_pages(self, step: Step, ids: list[int]) -> None:
        """The step's pages are the sequence's now; those it filled are sealed. (One token makes no tensor, and mostly
        no list of pages: with a small model that would cost more than the step.)"""
        full, new = self._length // PAGE_TOKENS, self._length + step.count
        if step.new_pages:
            self._hold(self._pages.plus(step.new_pages), step.new_pages)
        self._open_tokens += ids
        for number in range(full, new // PAGE_TOKENS):
            self._pages[number].seal(_ids(self._open_tokens[:PAGE_TOKENS]))
            del self._open_tokens[:PAGE_TOKENS]

    def _keep_tail_after(self, old: int) -> None:
        if self.tail_every and self._length // self.tail_every > old // self.tail_every:
            self.keep_tail()

    # ------------------------------------------------------------------ a step by native kernels

    def begin_live(self, count: int, runtime: _native.Runtime, *, fp4_keys: bool) -> Live:
        """Stage a step of `count` tokens to be run by native kernels: pages for it are there and known to the result.

        `commit_live` ends it; `rollback`, or the next step, drops it. `runtime`, `fp4_keys`: see `Live`. Raises
        `CacheFull`, and `LimitTooSmall` when the pool has a pager whose limit is not enough.
        """
        self._alive()
        if self.pool.pager is not None:
            self.pool.pager.check()
        step = self._begin(count)
        if self._live is None or self._live.fp4_keys != fp4_keys:
            tail = self._tail
            self._live = Live(self.pool, runtime, fp4_keys=fp4_keys)
            self._live.load(tail, self._pages)
        self._live.add_pages(step.new_pages)
        return self._live

    def commit_live(self, tokens: Tensor) -> None:
        """End a step begun by `begin_live`: `tokens`, valid integers [n], are now part of the past."""
        self._alive()
        step, live = self._step, self._live
        if step is None or live is None or len(tokens) != step.count:
            raise CacheError("commit_live without a begin_live for as many tokens")
        self._take_pages(step, tokens.tolist())
        live.native.commit(step.count)
        old, self._step, self._made_tail = self._length, None, None
        self._length += step.count
        self._keep_tail_after(old)

    def _leave_live(self) -> None:
        """Go back to pages and tail alone: whoever writes into a page outside a native step makes its slot stale."""
        if self._live is not None:
            self._tail = self._tail

    def rollback(self) -> None:
        """Drop what `append` took since the last `advance`: the sequence is as before the step."""
        self._alive()
        step, self._step = self._step, None
        if step is None:
            return
        self._leave_live()
        self.pool.release(step.new_pages)
        if self._pages and not self._pages[-1].sealed:
            self._pages[-1].clear_after(self.layout, self.length % PAGE_TOKENS)
        self._limit_views(self.length)

    def pages_needed(self, count: int) -> int:
        """Pages a step of `count` tokens will acquire."""
        return -(-(self.length + count) // PAGE_TOKENS) - len(self._pages)

    # ------------------------------------------------------------------ reading

    def table(self, layer: int, part: Part) -> EntryTable:
        """Where a compressor's entries lie, those of the current step included once `layer` was appended.

        For kernels that read pages in place. Valid until the next `append`, `truncate` or `free`.
        """
        self._alive()
        tokens = self.length
        if self._step is not None and layer in self._step.windows:
            tokens += self._step.count
        count = self.config.entries_after(tokens, layer)
        return EntryTable(self.pages, self.layout.region(layer, part), count, self.pool.device)

    def gather(self, layer: int, part: Part, indices: Tensor) -> Tensor:
        """The entries `indices`, integers of any shape [...], as [..., e], reading only those.

        Raises `CacheError` when an entry does not exist.
        """
        table = self.table(layer, part)
        rows = table.pick(indices.reshape(-1).to(torch.int64))
        return table.region.codec.decode(rows, self.dtype).view(*indices.shape, table.region.codec.width)

    def drop_views(self) -> None:
        """Give back the memory of decoded copies; `entries` rebuilds them when asked."""
        self._alive()
        if self._views is not None:
            self._views.clear()

    # ------------------------------------------------------------------ fork, back, end

    def fork(self) -> Sequence:
        """A second sequence with the same past: full pages shared, the open page copied, views not taken along.

        Raises `CacheFull` when there is no page for the open page's copy.
        """
        self.rollback()
        child = Sequence(self.pool, dtype=self.dtype, tail_every=self.tail_every, views=self._views is not None)
        copies = []
        if self.length % PAGE_TOKENS:
            copies = self.pool.acquire()
            copies[0].fill(self._pages[-1].data)
        child._hold(self._pages.first(self.length // PAGE_TOKENS).plus(copies), copies)
        child._tail, child._kept, child._open_tokens = self._tail, list(self._kept), list(self._open_tokens)
        child.origin = self.origin
        return child

    def keep_tail(self) -> Tail:
        """Keep the tail of the current position, so that `truncate` can come back to it. Costs its `nbytes`."""
        self.rollback()
        pager = self.pool.pager
        self.add_tail(self._tail if pager is None else self._tail.copy(pager.keep))
        return self._tail

    def add_tail(self, tail: Tail | LaterTail) -> None:
        """Register an earlier tail of this sequence, for example one that was saved with it.

        Raises `CacheError` when it lies ahead of the sequence. That it belongs to this past is the caller's word.
        """
        if tail.position > self.length:
            raise CacheError(f"a tail at {tail.position} lies ahead of a sequence of {self.length} tokens")
        place = bisect.bisect_left([kept.position for kept in self._kept], tail.position)
        if place == len(self._kept) or self._kept[place].position != tail.position:
            self._kept.insert(place, tail)

    def drop_tails(self) -> None:
        """Forget all kept tails but the empty one at 0."""
        self._alive()
        del self._kept[1:]

    def truncate(self, length: int) -> Tensor:
        """Go back to the nearest tail at or before `length`; returns the tokens, int32, to replay to arrive there.

        `self.length` is that tail's position afterwards. Going back to the current length does nothing. Raises
        `CacheError` when `length` is not in 0..t, `CacheFull` when a full page has to be reopened and there is no page
        for its copy.
        """
        self.rollback()
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot truncate a sequence of {self.length} tokens to {length}")
        if length == self.length:
            return _ids([])
        tail = self._nearest_tail(length)
        full, filled = divmod(tail.position, PAGE_TOKENS)
        opened = self.token_range(full * PAGE_TOKENS, tail.position).tolist()
        dropped = self.token_range(tail.position, length)
        pages = self._pages.first(full)
        if filled:
            page = self._reopen(full, filled)
            self._hold(pages.plus([page]), [page] if page is not self._pages[full] else [])
        else:
            self._hold(pages)
        self._tail = tail
        self._kept = [k for k in self._kept if k.position <= tail.position]
        self._open_tokens = opened
        if not tail.position:
            self.origin = ""  # nothing of theirs is left
        self._limit_views(self.length)
        return dropped

    def put_page(self, number: int, data: Tensor) -> None:
        """Take `data`, uint8 [page_bytes], as the bytes of page `number`: what its tokens are known to leave. A full
        page is then the one that has this very memory; of an open one, what lies behind its tokens is cleared."""
        self.rollback()
        self._leave_live()
        page = self._pages[number]
        if page.tokens is not None:
            page = self.pool.adopt(data, page.tokens)
            self._hold(self._pages.replaced(number, page), [page])
        else:
            page.fill(data)
            page.clear_after(self.layout, self.length % PAGE_TOKENS)
        self._limit_views(number * PAGE_TOKENS)

    def free(self) -> None:
        """Give the pages back. The sequence cannot be used afterwards; freeing it again does nothing."""
        if self._freed:
            return
        self.rollback()
        self._hold(PageList())
        self._kept, self._live = [], None
        if self._views is not None:
            self._views.clear()
        self._freed = True

    # ------------------------------------------------------------------ saving

    def export(self) -> SequenceImage:
        """Everything there is to save. Full pages are not copied: later steps, and `free`, leave their bytes alone."""
        self.rollback()
        count = self.length // PAGE_TOKENS
        return SequenceImage(
            length=self.length,
            tokens=self.tokens,
            pages=[page.data for page in self._pages[:count]],
            open_page=self._pages[-1].data.clone() if self.length % PAGE_TOKENS else None,
            tail=self._tail.tensors(),
            origin=self.origin,
        )

    @classmethod
    def restore(
        cls,
        pool: PagePool,
        image: SequenceImage,
        *,
        dtype: torch.dtype | None = None,
        tail_every: int | None = None,
        views: bool = True,
    ) -> Sequence:
        """The sequence `image` came from. Full pages are adopted as they are, the rest copied.

        Raises `ImageError` when anything does not fit the pool's layout, `CacheFull` when pages are lacking; then
        nothing is held.
        """
        sequence = cls(pool, dtype=dtype, tail_every=tail_every, views=views)
        check_image(image, pool.layout)
        tail = Tail.from_tensors(pool.layout, image.length, image.tail, pool.device)
        ids = token_ids(image.tokens, image.length, sequence.config.vocab_size)
        pages: list[Page] = []
        try:
            for number, data in enumerate(image.pages):
                pages.append(pool.adopt(data, ids[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS].clone()))
            if image.open_page is not None:
                pages += pool.acquire()
                pages[-1].fill(image.open_page)
                pages[-1].clear_after(pool.layout, image.length % PAGE_TOKENS)
        except BaseException:
            pool.release(pages)
            raise
        sequence._hold(PageList().plus(pages), pages)
        sequence._tail = tail
        sequence.add_tail(tail)
        sequence._open_tokens = ids[len(image.pages) * PAGE_TOKENS :].tolist()
        sequence.origin = image.origin
        return sequence

    # ------------------------------------------------------------------ inside

    def _alive(self) -> None:
        if self._freed:
            raise SequenceFreed("this sequence was freed; fork or restore another one")

    def _hold(self, pages: PageList, taken: Iterable[Page] = ()) -> None:
        """Hold `pages` instead of those so far. `taken`: those of them that came with a reference, which goes."""
        pages = pages.packed()
        self.pool.share(pages.held)
        self.pool.release((*self._pages.held, *taken))
        self._pages = pages

    def _begin(self, count: int) -> Step:
        self.rollback()
        needed = self.pages_needed(count)
        self._step = Step(count, self.pool.acquire(needed) if needed else [])
        return self._step

    def _write(self, layer: int, part: Part, entries: Tensor) -> None:
        """Encode new entries into the slots behind those of the past, over as many pages as they need."""
        region = self.layout.region(layer, part)
        pages = self.pages
        rows = region.codec.encode(entries.to(self.pool.device))
        first = self.config.entries_after(self.length, layer)
        done = 0
        while done < len(rows):
            number, slot = divmod(first + done, region.count)
            part_rows = rows[done : done + region.count - slot]
            pages[number].write(region, slot, part_rows)
            done += len(part_rows)

    def _nearest_tail(self, length: int) -> Tail:
        """The last kept tail at or before `length`, of those that are to be had; the empty one always is."""
        place = bisect.bisect_right([kept.position for kept in self._kept], length) - 1
        while isinstance(kept := self._kept[place], LaterTail):
            tail = kept.read()
            if tail is not None:
                self._kept[place] = tail
                return tail
            del self._kept[place]
            place -= 1
        return kept

    def _reopen(self, number: int, filled: int) -> Page:
        """An open page with what the first `filled` tokens of page `number` left; an open page is cut in place."""
        page = self._pages[number]
        if page.sealed:
            source, page = page, self.pool.acquire()[0]
            page.fill(source.data)
        page.clear_after(self.layout, filled)
        return page

    def _limit_views(self, tokens: int) -> None:
        """Forget decoded entries behind those of the first `tokens` tokens."""
        if self._views is not None:
            for layer, part in self.layout.regions:
                self._views.limit((layer, part), self.config.entries_after(tokens, layer))


def _ids(tokens: list[int]) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int32)
