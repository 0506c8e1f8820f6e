"""Slabs: what a decoding step streams through, of many pages side by side, layer by layer.

A step reads every index key and every HCA entry of its past. Page by page these lie far apart, and a machine that waits
for each page's first bytes reads at half its speed; so copies of them are kept in slabs, in the order in which they are
read and in large memory pages where the system has them. A slab gives each cache page a *slot*. All of it is derived
from the pages, and is never saved.
"""

from __future__ import annotations

import mmap
import threading

import numpy as np

from foveal import _native
from foveal.cache.memory import address_of
from foveal.cache.pager import Pager
from foveal.formats import Array

SLAB_BYTES = 8 << 20
"""About how large a slab is."""
_LARGE_PAGE = 2 << 20


class Slot:
    """A cache page's place in a slab; given back when nobody refers to it any more."""

    __slots__ = ("__weakref__", "number", "slab")

    def __init__(self, slab: _Slab, number: int) -> None:
        self.slab = slab
        self.number = number

    def __del__(self) -> None:
        self.slab.free[self.number] = 1

    @property
    def address(self) -> int:
        """Where the slab begins in memory."""
        return self.slab.address

    @property
    def nbytes(self) -> int:
        return self.slab.slot_bytes

    def belongs_to(self, slabs: Slabs) -> bool:
        """Whether the slot is one of `slabs`."""
        return self.slab.owner is slabs


class _Slab:
    """`slots` slots of `slot_bytes`, taken in order; those at the end that were given back are taken again."""

    def __init__(self, owner: Slabs, memory: Array, slots: int, slot_bytes: int) -> None:
        self.owner = owner
        self.memory = memory
        self.address = address_of(memory)
        self.slot_bytes = slot_bytes
        self.free = bytearray(b"\1" * slots)
        self._next = 0

    def take(self) -> Slot | None:
        while self._next and self.free[self._next - 1]:
            self._next -= 1
        if self._next == len(self.free):
            return None
        number, self._next = self._next, self._next + 1
        self.free[number] = 0
        return Slot(self, number)


class Slabs:
    """Slots for the pages of one pool, for caches of `shape`; with a `pager`, where memory can be let go. Safe across
    threads."""

    def __init__(self, shape: _native.CacheShape, pager: Pager | None = None) -> None:
        self.shape = shape
        self.pager = pager
        self._slab: _Slab | None = None
        self._lock = threading.Lock()

    def take(self) -> Slot:
        """A slot of zeros, or of what an earlier page left: whoever takes it fills it in ascending order."""
        with self._lock:
            slot = self._slab.take() if self._slab is not None else None
            if slot is None:
                # The last one lives on as long as a page has a slot in it.
                size = self.shape.slab_bytes
                memory = _large_memory(size) if self.pager is None else self.pager.zeros(size)
                self._slab = _Slab(self, memory, self.shape.slots, self.shape.slot_bytes)
                slot = self._slab.take()
            assert slot is not None
            return slot


def slots_of(slot_bytes: int) -> int:
    """How many slots of so many bytes make a slab: a power of two."""
    return 1 << max(0, (SLAB_BYTES // max(slot_bytes, 64)).bit_length() - 1)


def _large_memory(size: int) -> Array:
    """`size` zeros, uint8, at the start of a large memory page; the system gives memory as they are used."""
    memory = mmap.mmap(-1, size + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    return whole[-address_of(whole) % _LARGE_PAGE :][:size]
