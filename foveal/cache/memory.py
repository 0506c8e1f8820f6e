"""Where pages lie: what a pool asks of memory, and the host's memory.

A pool counts pages and asks nothing about their bytes, so they may lie anywhere: in the host's memory, in files that
are mapped (`foveal.cache.pager`), or in a device's arena, one array of pages in which a page is a number. A backend
says where its pages have to lie (`foveal.backends.Runner.memory`); the host's is the default.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from foveal.cache.pager import Pager
from foveal.formats import Array


class PageBytes(Protocol):
    """The bytes of one page, wherever they lie. They are given back when nobody holds this any more."""

    @property
    def address(self) -> int:
        """What tells this page's bytes from all others of its memory: where they begin, or their number in an arena."""
        ...

    @property
    def nbytes(self) -> int: ...

    def read(self) -> Array:
        """The bytes for the host, uint8, not to be written into: the memory itself where the host sees it."""
        ...

    def write(self, offset: int, data: Array) -> None:
        """Put `data`, contiguous uint8, from byte `offset` on."""
        ...

    def clear(self, offset: int, size: int) -> None:
        """Put zeros from byte `offset` on."""
        ...


class PageMemory(Protocol):
    """Memory for the pages of one pool."""

    def zeros(self, size: int) -> PageBytes:
        """A page of `size` zeros. Raises `CacheFull` when there is no room."""
        ...

    def adopt(self, data: Array) -> PageBytes:
        """A page of these bytes, uint8: on the very memory where pages may lie there, else a copy. Raises `CacheFull`
        when there is no room."""
        ...


class HostBytes:
    """A page in memory that the host sees."""

    __slots__ = ("address", "data")

    def __init__(self, data: Array) -> None:
        self.data = data
        self.address = address_of(data)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def read(self) -> Array:
        return self.data

    def write(self, offset: int, data: Array) -> None:
        self.data[offset : offset + data.size] = data.reshape(-1)

    def clear(self, offset: int, size: int) -> None:
        self.data[offset : offset + size] = 0


class HostMemory:
    """Each page an array of its own; with a `pager`, where memory can be let go."""

    def __init__(self, pager: Pager | None = None) -> None:
        self._pager = pager

    def zeros(self, size: int) -> HostBytes:
        """See `PageMemory`."""
        return HostBytes(np.zeros(size, dtype=np.uint8) if self._pager is None else self._pager.zeros(size))

    def adopt(self, data: Array) -> HostBytes:
        """See `PageMemory`: never a copy."""
        return HostBytes(data)


def address_of(array: Array) -> int:
    """Where an array's memory begins."""
    address: int = array.__array_interface__["data"][0]
    return address
