"""One sequence: pages and tail (the contract stands in `foveal.cache`).

What a sequence is stands in four classes, each on the one before: its past (`foveal.cache.past`), reading it
(`reading`), steps (`stepping`), and here its life: forks, going back, images and the end.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np

from foveal.cache.errors import CacheError
from foveal.cache.image import SequenceImage, check_image
from foveal.cache.page import Page
from foveal.cache.page_list import PageList
from foveal.cache.past import ids
from foveal.cache.pool import PagePool
from foveal.cache.step import token_ids
from foveal.cache.stepping import Stepping
from foveal.cache.tail import Tail
from foveal.config import PAGE_TOKENS
from foveal.formats import Array, DType


class Sequence(Stepping):
    """The past of one sequence in pages of `pool`. Implements `foveal.cache.contract.SequenceState` on numpy arrays.

    `dtype` is what `window` and `entries` come back in (default: the format's window dtype); give the network's compute
    dtype. `tail_every`: keep a tail whenever a step passes a multiple of so many tokens. `views` off trades speed of
    `entries` for memory. Not to be used from two threads at once.

    Every method but `free` raises `SequenceFreed` after that.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        dtype: DType | type[np.float32] | None = None,
        tail_every: int | None = None,
        views: bool = True,
    ) -> None:
        super().__init__(pool, dtype=dtype, tail_every=tail_every, views=views)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        state = "freed" if self._freed else f"{self.length} tokens, {len(self._pages)} pages"
        return f"<Sequence: {state}, {self.layout.format}>"

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

    def truncate(self, length: int) -> Array:
        """Go back to the nearest tail at or before `length`; returns the tokens, int32, to replay to arrive there.

        `self.length` is that tail's position afterwards. Going back to the current length does nothing. Raises
        `CacheError` when `length` is not in 0..t, `CacheFull` when a full page has to be reopened and there is no page
        for its copy.
        """
        self.rollback()
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot truncate a sequence of {self.length} tokens to {length}")
        if length == self.length:
            return ids([])
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

    def put_page(self, number: int, data: Array) -> None:
        """Take `data`, uint8 [page_bytes], as the bytes of page `number`: what its tokens are known to leave. A full
        page is then the one that has this very memory; of an open one, what lies behind its tokens is cleared."""
        self.rollback()
        self._leave_work()
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
        self._kept, self._work = [], None
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
            open_page=self._pages[-1].data.copy() if self.length % PAGE_TOKENS else None,
            tail=self._tail.tensors(),
            origin=self.origin,
        )

    @classmethod
    def restore(
        cls,
        pool: PagePool,
        image: SequenceImage,
        *,
        dtype: DType | type[np.float32] | None = None,
        tail_every: int | None = None,
        views: bool = True,
    ) -> Sequence:
        """The sequence `image` came from. Full pages are adopted as they are, the rest copied.

        Raises `ImageError` when anything does not fit the pool's layout, `CacheFull` when pages are lacking; then
        nothing is held.
        """
        sequence = cls(pool, dtype=dtype, tail_every=tail_every, views=views)
        check_image(image, pool.layout)
        tail = Tail.from_tensors(pool.layout, image.length, image.tail)
        tokens = token_ids(image.tokens, image.length, sequence.config.vocab_size)
        pages: list[Page] = []
        try:
            for number, data in enumerate(image.pages):
                pages.append(pool.adopt(data, tokens[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS].copy()))
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
        sequence._open_tokens = tokens[len(image.pages) * PAGE_TOKENS :].tolist()
        sequence.origin = image.origin
        return sequence
