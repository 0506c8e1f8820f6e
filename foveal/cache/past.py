"""The past of one sequence: its pages, its tail, the tails it can go back to, and its token ids.

Everything asks the length, and nothing else is state. A backend that runs whole steps keeps the sequence in work in a
form of its own (`foveal.cache.work`); the tail is made from that when it is next asked for.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

import numpy as np

from foveal.cache.errors import CacheError, SequenceFreed
from foveal.cache.page import Page
from foveal.cache.page_list import PageList
from foveal.cache.pool import PagePool
from foveal.cache.tail import LaterTail, Tail
from foveal.cache.work import InWork
from foveal.config import PAGE_TOKENS
from foveal.formats import Array


class Past:
    """What is behind a `foveal.cache.Sequence`. Every method raises `SequenceFreed` after the sequence was freed."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.layout = pool.layout
        self.config = pool.layout.config
        self.origin = ""
        """Who computed the past: "" for engines like this one, else a name for whoever the pages were taken from. All
        that is computed on top of it is theirs too, so it goes with every fork, image and replay."""
        self._made_tail: Tail | None = pool.first_tail
        """The tail, unless steps have gone through `_work` since it was made."""
        self._length = 0
        self._work: InWork | None = None
        self._kept: list[Tail | LaterTail] = [pool.first_tail]
        self._pages = PageList()
        self._open_tokens: list[int] = []
        self._freed = False

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
    def tokens(self) -> Array:
        """All token ids so far, int32 [t]. A copy."""
        self._alive()
        full = [page.tokens for page in self._pages if page.tokens is not None]
        return np.concatenate([*full, ids(self._open_tokens)])

    def token_range(self, first: int, after: int) -> Array:
        """Ids of the tokens `first` to `after` (not included), int32, without a copy of all the others."""
        self._alive()
        page = first // PAGE_TOKENS
        start, pages = page * PAGE_TOKENS, self._pages[page : -(-after // PAGE_TOKENS)]
        full = [page.tokens for page in pages if page.tokens is not None]
        return np.concatenate([*full, ids(self._open_tokens)])[first - start : after - start]

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

    def add_tail(self, tail: Tail | LaterTail) -> None:
        """Register an earlier tail of this sequence, for example one that was saved with it.

        Raises `CacheError` when it lies ahead of the sequence. That it belongs to this past is the caller's word.
        """
        if tail.position > self.length:
            raise CacheError(f"a tail at {tail.position} lies ahead of a sequence of {self.length} tokens")
        index = bisect.bisect_left([kept.position for kept in self._kept], tail.position)
        if index == len(self._kept) or self._kept[index].position != tail.position:
            self._kept.insert(index, tail)

    def drop_tails(self) -> None:
        """Forget all kept tails but the empty one at 0."""
        self._alive()
        del self._kept[1:]

    @property
    def freed(self) -> bool:
        """Whether `free` was called: nothing else can be asked then."""
        return self._freed

    # ------------------------------------------------------------------ inside

    def _alive(self) -> None:
        if self._freed:
            raise SequenceFreed("this sequence was freed; fork or restore another one")

    @property
    def _tail(self) -> Tail:
        """The tail at the present length; made from the form in work when steps have gone through that."""
        if self._made_tail is None:
            assert self._work is not None
            self._made_tail = self._work.tail()
        return self._made_tail

    @_tail.setter
    def _tail(self, tail: Tail) -> None:
        self._made_tail, self._length, self._work = tail, tail.position, None

    def _leave_work(self) -> None:
        """Go back to pages and tail alone: whoever writes into a page outside a backend's step makes its copy stale."""
        if self._work is not None:
            self._tail = self._tail

    def _hold(self, pages: PageList, taken: Iterable[Page] = ()) -> None:
        """Hold `pages` instead of those so far. `taken`: those of them that came with a reference, which goes."""
        pages = pages.packed()
        self.pool.share(pages.held)
        self.pool.release((*self._pages.held, *taken))
        self._pages = pages

    def _nearest_tail(self, length: int) -> Tail:
        """The last kept tail at or before `length`, of those that are to be had; the empty one always is."""
        index = bisect.bisect_right([kept.position for kept in self._kept], length) - 1
        while isinstance(kept := self._kept[index], LaterTail):
            tail = kept.read()
            if tail is not None:
                self._kept[index] = tail
                return tail
            del self._kept[index]
            index -= 1
        return kept

    def _reopen(self, number: int, filled: int) -> Page:
        """An open page with what the first `filled` tokens of page `number` left; an open page is cut in place."""
        page = self._pages[number]
        if page.sealed:
            source, page = page, self.pool.acquire()[0]
            page.fill(source.data)
        page.clear_after(self.layout, filled)
        return page


def ids(tokens: list[int]) -> Array:
    """Token ids, int32 [n]."""
    return np.array(tokens, dtype=np.int32)
