"""Pages: what 256 tokens leave behind in all layers, in one allocation.

What is special here: a page is written only while it is open, by the one sequence that owns it. Sealed, it never
changes again, whoever shares it, and its memory is never handed out a second time: a saved image, a native kernel or
another process may go on looking at the bytes for as long as it holds the tensor, and the allocator takes them back
when nobody does. A page starts as zeros, so that the same tokens always give the same bytes.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from foveal import _native
from foveal.cache.errors import CacheError, CacheFull
from foveal.cache.layout import CacheLayout, Region
from foveal.cache.pager import Pager
from foveal.cache.slabs import Slabs, Slot
from foveal.config import PAGE_TOKENS


class Page:
    """One page. `data` is uint8 [page_bytes]; `tokens` is None while open, then int32 [256], the token ids behind it.

    `references` counts the sequences that hold it. Pages are made and counted by a `PagePool` only. `slot` holds copies
    of what native kernels stream through (`foveal.cache.live`); it is never saved.
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


class PagePool:
    """Hands out pages and counts them. `limit` (pages) bounds the pages alive at a time; None means no bound. With a
    `pager`, pages lie where memory can be let go (`foveal.cache.pager`).

    Counting is safe across threads; a `Sequence` itself belongs to one thread at a time.
    """

    def __init__(
        self,
        layout: CacheLayout,
        *,
        limit: int | None = None,
        device: torch.device | str = "cpu",
        pager: Pager | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"page limit is {limit}; it must be at least 1, or None")
        self.layout = layout
        self.limit = limit
        self.device = torch.device(device)
        self.pager = pager
        self._lock = threading.Lock()
        # Weak, so that a sequence dropped without `free` costs nothing once Python has collected it.
        self._pages: weakref.WeakSet[Page] = weakref.WeakSet()
        self._by_address: weakref.WeakValueDictionary[int, Page] = weakref.WeakValueDictionary()
        self._slabs: dict[_native.CacheShape, Slabs] = {}

    def slabs(self, shape: _native.CacheShape) -> Slabs:
        """Where this pool's pages have their slots, for kernels that see the cache as `shape`."""
        with self._lock:
            return self._slabs.setdefault(shape, Slabs(shape, self.pager))

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
            # Pages outlive the caller's inference mode and are written outside it, so they must be ordinary tensors.
            with torch.inference_mode(False):
                pages = [Page(self._zeros()) for _ in range(count)]
            self._register(pages)
            return pages

    def adopt(self, data: Tensor, tokens: Tensor) -> Page:
        """A full page over bytes that exist already (a memory-mapped file, another sequence's page), without a copy.

        The same memory adopted twice is one page with two references. Raises `CacheError` when size, dtype or device do
        not fit or the same bytes come with other tokens, `CacheFull` when the limit is reached.
        """
        size = self.layout.page_bytes
        if data.dtype != torch.uint8 or data.shape != (size,) or not data.is_contiguous():
            raise CacheError(f"a page is {size} contiguous uint8 bytes here, not {data.dtype} {list(data.shape)}")
        if data.device.type != self.device.type:
            raise CacheError(f"a page of this pool lies on {self.device}, not on {data.device}; move it first")
        with self._lock:
            known = self._by_address.get(data.data_ptr()) if size else None
            if known is not None and known.references > 0:
                if known.tokens is None or not torch.equal(known.tokens, tokens.to(torch.int32)):
                    raise CacheError("the same page came with other token ids; its image is inconsistent")
                known.references += 1
                return known
            self._check_room(1)
            page = Page(data)
            page.seal(tokens)
            self._register([page])
            return page

    def share(self, pages: Iterable[Page]) -> None:
        """One more reference to each of the pages."""
        with self._lock:
            for page in pages:
                page.references += 1

    def release(self, pages: Iterable[Page]) -> None:
        """One reference less; a page without references is no longer alive.

        Raises `CacheError` when a page is released more often than it was shared.
        """
        with self._lock:
            for page in pages:
                if page.references < 1:
                    raise CacheError("a page was released more often than it was shared")
                page.references -= 1
                if page.references == 0:
                    self._pages.discard(page)

    def check_integrity(self, held: Iterable[Iterable[Page]] | None = None) -> None:
        """Raise `CacheError` listing what is inconsistent.

        `held`: the pages of every living sequence of this pool (`Sequence.pages`). Given that, reference counts must be
        exactly right: no page leaked, none released too early.
        """
        with self._lock:
            pages = list(self._pages)
        wrong = [f"a live page has {p.references} references" for p in pages if p.references < 1]
        wrong += ["a live page has the wrong size" for p in pages if p.data.numel() != self.layout.page_bytes]
        if self.layout.page_bytes and len({p.data.data_ptr() for p in pages}) != len(pages):
            wrong.append("two live pages share memory")
        if self.limit is not None and len(pages) > self.limit:
            wrong.append(f"{len(pages)} pages are alive, over the limit of {self.limit}")
        if held is not None:
            counts = Counter(page for holder in held for page in holder)
            wrong += [
                f"a page has {page.references} references but {counts[page]} holders"
                for page in set(pages) | set(counts)
                if page.references != counts[page]
            ]
        if wrong:
            raise CacheError(f"the page pool is inconsistent: {'; '.join(wrong)}")

    def _zeros(self) -> Tensor:
        if self.pager is not None:
            return self.pager.zeros(self.layout.page_bytes)
        return torch.zeros(self.layout.page_bytes, dtype=torch.uint8, device=self.device)

    def _register(self, pages: list[Page]) -> None:
        self._pages.update(pages)
        self._by_address.update((page.data.data_ptr(), page) for page in pages)

    def _check_room(self, count: int) -> None:
        if self.limit is not None and self.live + count > self.limit:
            size = self.layout.page_bytes / 2**20
            raise CacheFull(
                f"the cache is full: {count} more page(s) of {size:.2f} MiB wanted, {self.live} of {self.limit} in "
                "use; free sequences or raise the limit"
            )
