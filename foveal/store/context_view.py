"""One context as the store has it: opened once, and each piece of it verified when it is asked for.

Opening proves the tokens: they are bound together by the names of the context's pages (`foveal.store.chain`). Pages and
tails are read when they are wanted, and held against these names. What is not there, or not as it was saved, is None;
the view notes what was damaged, so that it need never be looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from foveal import cache
from foveal.config import PAGE_TOKENS
from foveal.formats import Array
from foveal.store.arrays import array_bytes, token_array, token_bytes, unpack_arrays
from foveal.store.chain import read_chain
from foveal.store.contexts import read_parts
from foveal.store.hashes import checksum
from foveal.store.objects import Context, StoredTail
from foveal.store.records import Extent, Kind
from foveal.store.rows import Entry
from foveal.store.store import Store


class ContextView:
    """The pieces of `context`. `fingerprint`: the digest of what its bytes depend on.

    `tokens` are all of its tokens, int32 [length]; `chain` its nodes, of which the tokens and names were verified;
    `damaged` the entries of pages and tails that were asked for and are not as they were saved. Raises `CorruptMemory`
    when the tokens are lost in both copies; every method raises `StoreUnavailable` when a pack cannot be read now.
    """

    def __init__(self, store: Store, context: Context, fingerprint: str) -> None:
        self.store, self.context = store, context
        self.chain = read_chain(store, context, fingerprint)
        self.tokens = token_array(self.chain.tokens)
        self.damaged: list[Entry] = []
        self._tail_keys = dict(context.tails)

    # ------------------------------------------------------------------ pages

    def stored_page(self, number: int) -> tuple[memoryview | None, Entry | None]:
        """The verified bytes of page `number` (from 0) as they are stored, and where they lie; None for what is not
        there, or not whole."""
        seen = self.chain.pages[number]
        return (None, None) if seen is None else self.store.objects.fetch(Kind.PAGE, self.chain.keys[number], seen)

    def pages(self, pool: cache.PagePool, most: int | None = None) -> list[Array | None]:
        """The verified bytes of the first `most` pages (default: of all), uint8 [page_bytes] each: mapped, or shared
        with what is in memory; None where they are not as they were saved."""
        entries = self.chain.pages[:most]
        extents = [Extent(page.pack, page.offset, page.span) for page in entries if page is not None]
        self.store.packs.maps.will_need(extents)
        in_memory = self.store.packs.maps.are_whole()
        return [self._page(number, pool, in_memory) for number in range(len(entries))]

    def first_pages(self, pool: cache.PagePool, most: int) -> list[Array]:
        """`pages`, up to the first that is not there."""
        found: list[Array] = []
        for page in self.pages(pool, most):
            if page is None:
                break
            found.append(page)
        return found

    def _page(self, number: int, pool: cache.PagePool, in_memory: bool) -> Array | None:
        data = self._in_memory(number) if in_memory else None
        if data is None:
            payload, entry = self.stored_page(number)
            data = None if payload is None else self._array(payload, number, pool)
            if data is None and entry is not None:
                self.damaged.append(entry)
        return data

    def _in_memory(self, number: int) -> Array | None:
        """A page that somebody in this process has, if it still is what was saved: its file may have been damaged
        since."""
        data = self.store.known.data(self.chain.keys[number])
        if data is not None and checksum(array_bytes(data)) != self.chain.nodes[number].digest:
            return None
        return data

    def _array(self, payload: memoryview, number: int, pool: cache.PagePool) -> Array | None:
        if len(payload) != pool.layout.page_bytes:
            return None
        if self.store.cipher is not None and checksum(payload) != self.chain.nodes[number].digest:
            return None
        return np.frombuffer(payload, dtype=np.uint8)

    # ------------------------------------------------------------------ tails

    def stored_tail(self, position: int) -> memoryview | None:
        """The bytes of the tail at `position` as they are stored; None when it is not there, or not whole."""
        return self.store.objects.fetch(Kind.TAIL, self._tail_keys[position])[0]

    def any_tail(self, layout: cache.CacheLayout, position: int) -> tuple[StoredTail | None, Entry | None]:
        """The tail that the context names for `position`, whole and of the right shapes, and where it lies. That it
        stands behind these tokens is not looked at."""
        return _read_tail(self.store, self._tail_keys[position], layout)

    def tail(self, layout: cache.CacheLayout, position: int) -> StoredTail | None:
        """The verified tail behind these very tokens; None where there is none, or it is not as it was saved."""
        if position not in self._tail_keys:
            return None
        tail, entry = self.any_tail(layout, position)
        if entry is None or not entry.pack:
            return None
        if tail is None or tail.position != position or tail.name != self._tail_name(position):
            self.damaged.append(entry)
            return None
        return tail

    def tail_reader(self, layout: cache.CacheLayout, position: int) -> Callable[[], cache.Tail | None]:
        """Reads that tail later; gives None when the store has lost it meanwhile. Holds nothing of this view."""
        return partial(_read_later, self.store, layout, self._tail_keys[position], position, self._tail_name(position))

    def _tail_name(self, position: int) -> bytes:
        full = position // PAGE_TOKENS
        rest = token_bytes(self.tokens[full * PAGE_TOKENS : position])
        return self.store.names.tail_name(self.chain.key_after(full), rest)

    # ------------------------------------------------------------------ source map

    def map_parts(self) -> list[bytes]:
        """The parts of the source map (`foveal.store.contexts.read_parts`). Raises `CorruptMemory`."""
        return read_parts(self.store, self.context)


def _read_tail(store: Store, key: bytes, layout: cache.CacheLayout) -> tuple[StoredTail | None, Entry | None]:
    payload, entry = store.objects.fetch(Kind.TAIL, key)
    tail = None if payload is None else StoredTail.from_bytes(payload)
    if tail is None or len(tail.open_page) != (layout.page_bytes if tail.position % PAGE_TOKENS else 0):
        return None, entry
    try:
        cache.Tail.from_tensors(layout, tail.position, unpack_arrays(tail.tensors))
    except (cache.CacheError, ValueError):
        return None, entry
    return tail, entry


def _read_later(store: Store, layout: cache.CacheLayout, key: bytes, position: int, name: bytes) -> cache.Tail | None:
    tail, _ = _read_tail(store, key, layout)
    if tail is None or tail.position != position or tail.name != name:
        return None
    return cache.Tail.from_tensors(layout, position, unpack_arrays(tail.tensors))
