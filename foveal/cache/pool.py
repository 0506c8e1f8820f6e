"""The pool: where pages come from, and who holds how many of them.

References are counted of pages and of blocks of pages. A block that somebody holds holds its pages, so that sharing a
long past counts a few hundred things, whatever its length.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, cast

import numpy as np

from foveal.cache.errors import CacheError, CacheFull
from foveal.cache.layout import CacheLayout
from foveal.cache.memory import HostMemory, PageMemory, address_of
from foveal.cache.page import Page
from foveal.cache.page_list import Block, PageList
from foveal.cache.pager import Pager
from foveal.cache.tail import Tail
from foveal.formats import Array

Held = Page | Block
T = TypeVar("T")


class PagePool:
    """Hands out pages and counts them. `limit` (pages) bounds the pages alive at a time; None means no bound. `memory`
    is where they lie, by default the host's; with a `pager`, where it can be let go (`foveal.cache.pager`).

    Counting is safe across threads; a `Sequence` itself belongs to one thread at a time.
    """

    def __init__(
        self,
        layout: CacheLayout,
        *,
        limit: int | None = None,
        memory: PageMemory | None = None,
        pager: Pager | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"page limit is {limit}; it must be at least 1, or None")
        self.layout = layout
        self.limit = limit
        self.memory = memory or HostMemory(pager)
        self.pager = pager
        self.owner: object = None
        """What tells whose sequences these are; None: nobody's in particular."""
        self.first_tail = Tail.empty(layout)
        """The tail that every sequence begins with."""
        self.new_lock()
        # Weak, so that a sequence dropped without `free` costs nothing once Python has collected it.
        self._pages: weakref.WeakSet[Page] = weakref.WeakSet()
        self._by_address: weakref.WeakValueDictionary[int, Page] = weakref.WeakValueDictionary()
        self._beside: dict[Hashable, Any] = {}
        _POOLS.add(self)

    def new_lock(self) -> None:
        """Also in a process that was just forked, where the thread that held it is not."""
        self._lock = threading.Lock()

    def beside(self, key: Hashable, make: Callable[[], T]) -> T:
        """What a backend keeps for all pages of this pool under `key`; made when it is first asked for."""
        with self._lock:
            if key not in self._beside:
                self._beside[key] = make()
            return cast(T, self._beside[key])

    @property
    def live(self) -> int:
        """Pages in use."""
        return len(self._pages)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use; a page shared by many counts once."""
        return self.live * self.layout.page_bytes

    @property
    def free(self) -> int | None:
        """Pages that can still be acquired, or None without a limit."""
        return None if self.limit is None else self.limit - self.live

    def acquire(self, count: int = 1) -> list[Page]:
        """`count` empty open pages of zeros, each with one reference.

        Raises `CacheFull`, having taken none, when the limit does not allow them all, or a pager's disk is full.
        """
        with self._lock:
            self._check_room(count)
            pages = [Page(self.memory.zeros(self.layout.page_bytes)) for _ in range(count)]
            self._register(pages)
            return pages

    def adopt(self, data: Array, tokens: Array) -> Page:
        """A full page of bytes that exist already (a memory-mapped file, another sequence's page), without a copy where
        the memory allows it.

        The same memory adopted twice is one page with two references. Raises `CacheError` when size or dtype do not
        fit or the same bytes come with other tokens, `CacheFull` when the limit is reached.
        """
        size = self.layout.page_bytes
        if data.dtype != np.uint8 or data.shape != (size,) or not data.flags.c_contiguous:
            raise CacheError(f"a page is {size} contiguous uint8 bytes here, not {data.dtype} {list(data.shape)}")
        with self._lock:
            known = self._by_address.get(address_of(data)) if size else None
            if known is not None and known.references > 0:
                if known.tokens is None or not np.array_equal(known.tokens, tokens):
                    raise CacheError("the same page came with other token ids; its image is inconsistent")
                known.references += 1
                return known
            self._check_room(1)
            page = Page(self.memory.adopt(data))
            page.seal(tokens)
            self._register([page])
            return page

    def share(self, held: Iterable[Held]) -> None:
        """One more reference to each of the pages and blocks. A block that had none takes one of each of its pages.

        Raises `CacheError` for a page that nobody holds any more.
        """
        with self._lock:
            self._share(held)

    def _share(self, held: Iterable[Held]) -> None:
        for one in held:
            if not one.references:
                if isinstance(one, Page):
                    raise CacheError("a page was shared that nobody holds any more")
                self._share(one.pages)
            one.references += 1

    def release(self, held: Iterable[Held]) -> None:
        """One reference less to each; a block without references releases its pages, and a page without is no longer
        alive.

        Raises `CacheError` when one is released more often than it was shared.
        """
        with self._lock:
            self._release(held)

    def _release(self, held: Iterable[Held]) -> None:
        for one in held:
            if one.references < 1:
                raise CacheError("a page, or a block of them, was released more often than it was shared")
            one.references -= 1
            if one.references:
                continue
            if isinstance(one, Page):
                self._pages.discard(one)
            else:
                self._release(one.pages)

    def check_integrity(self, held: Iterable[Iterable[Page]] | None = None) -> None:
        """Raise `CacheError` listing what is inconsistent.

        `held`: the pages of every living sequence of this pool (`Sequence.pages`). Given that, reference counts must be
        exactly right, of pages and of blocks: nothing leaked, nothing released too early.
        """
        with self._lock:
            pages = list(self._pages)
        wrong = [f"a live page has {p.references} references" for p in pages if p.references < 1]
        wrong += ["a live page has the wrong size" for p in pages if p.memory.nbytes != self.layout.page_bytes]
        if self.layout.page_bytes and len({p.address for p in pages}) != len(pages):
            wrong.append("two live pages share memory")
        if self.limit is not None and len(pages) > self.limit:
            wrong.append(f"{len(pages)} pages are alive, over the limit of {self.limit}")
        if held is not None:
            wrong += _miscounted(pages, held)
        if wrong:
            raise CacheError(f"the page pool is inconsistent: {'; '.join(wrong)}")

    def _register(self, pages: list[Page]) -> None:
        self._pages.update(pages)
        self._by_address.update((page.address, page) for page in pages)

    def _check_room(self, count: int) -> None:
        if self.limit is not None and self.live + count > self.limit:
            size = self.layout.page_bytes / 2**20
            raise CacheFull(
                f"the cache is full: {count} more page(s) of {size:.2f} MiB wanted, {self.live} of {self.limit} in "
                "use; free sequences or raise the limit"
            )


_POOLS: weakref.WeakSet[PagePool] = weakref.WeakSet()


def _forked() -> None:
    for pool in list(_POOLS):
        pool.new_lock()


os.register_at_fork(after_in_child=_forked)


def _miscounted(pages: list[Page], held: Iterable[Iterable[Page]]) -> list[str]:
    """What is wrong with the references of `pages`, and of what those hold who have `held`: once what a list holds
    itself, and once what a block does, however many have that."""
    direct = [one for holder in held for one in (holder.held if isinstance(holder, PageList) else holder)]
    blocks = Counter(one for one in direct if isinstance(one, Block))
    counts = Counter(one for one in direct if isinstance(one, Page))
    counts.update(page for block in blocks for page in block.pages)
    checked: list[tuple[str, Held, int]] = [("block", block, holders) for block, holders in blocks.items()]
    checked += [("page", page, counts[page]) for page in set(pages) | set(counts)]
    return [
        f"a {what} has {one.references} references but {holders} holders"
        for what, one, holders in checked
        if one.references != holders
    ]
