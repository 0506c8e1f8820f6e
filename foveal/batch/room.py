"""Room for sequences: what a request needs of it, and how one that is not urgent makes room for others.

A parked sequence holds its tokens and the pages that others hold as well. All else (its own full pages, the open page,
the tail) lies in a file without a name and is read back bit for bit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from foveal import cache
from foveal.cache.contract import AnyState, Part
from foveal.cache.page import Page
from foveal.config import HCA_RATIO, PAGE_TOKENS
from foveal.errors import ParameterError
from foveal.formats import Array
from foveal.process.text import parse_count
from foveal.store.arrays import array_bytes, pack_arrays, unpack_arrays
from foveal.store.hashes import checksum


class Parked(Protocol):
    """A sequence that has made room for others."""

    @property
    def pages(self) -> int:
        """Pages it takes to come back."""
        ...

    def restore(self) -> AnyState:
        """The sequence as it was. Raises `CacheFull`, and can then be tried again."""
        ...

    def drop(self) -> None:
        """Forget it."""
        ...


class Room(Protocol):
    """Where the states of an engine have their memory, counted in pages."""

    @property
    def limit(self) -> int | None:
        """Pages there can be; None for any number."""
        ...

    @property
    def free(self) -> int | None:
        """Pages that can still be had."""
        ...

    def has(self, state: AnyState) -> bool:
        """Whether the state has its memory here, or at least in nobody else's room."""
        ...

    def needed(self, state: AnyState, tokens: int) -> int:
        """Pages that running `tokens` more tokens takes, beyond those the state has."""
        ...

    def pages(self, state: AnyState, tokens: int) -> int:
        """Pages that the state takes in all when `tokens` more tokens are run."""
        ...

    def park(self, state: AnyState) -> Parked:
        """Have `state` make room; it is freed. Raises `CacheFull` when there is no room to put it, having changed
        nothing."""
        ...


def pages_within(layout: cache.CacheLayout, budget: int | str, sequences: int) -> int:
    """How many pages so many bytes are (a number, or a text like "8G"), when `sequences` have a tail each. A page that
    is worked on counts with the copies that native kernels keep of parts of it. Raises `ParameterError` when there is
    not one."""
    total = parse_count(budget) if isinstance(budget, str) else budget
    if not isinstance(total, int) or isinstance(total, bool):
        raise ParameterError(f'cache is {budget!r}; it must be a number of bytes, or a text like "8G"')
    copied = sum(
        region.count * region.entry_bytes
        for (layer, part), region in layout.regions.items()
        if part is Part.INDEX or layout.config.compress_ratios[layer] == HCA_RATIO
    )
    page = max(layout.page_bytes + copied, 1)
    tails = sequences * layout.tail_bytes(PAGE_TOKENS * 64)
    pages = (total - tails) // page
    if pages < 1:
        raise ParameterError(
            f"a cache of {total:,} bytes is too small: {sequences} tails take {tails:,}, and a page {page:,}; give more"
        )
    return pages


class PoolRoom:
    """The room of sequences in `pool`. `folder` is where parked ones lie (default: the system's temporary folder)."""

    def __init__(self, pool: cache.PagePool, folder: str | Path | None = None) -> None:
        self.pool = pool
        self.folder = folder
        self._owner = pool.owner = object()

    @property
    def limit(self) -> int | None:
        return self.pool.limit

    @property
    def free(self) -> int | None:
        return self.pool.free

    def has(self, state: AnyState) -> bool:
        return not isinstance(state, cache.Sequence) or state.pool.owner in (None, self._owner)

    def needed(self, state: AnyState, tokens: int) -> int:
        return state.pages_needed(tokens) if isinstance(state, cache.Sequence) else 0

    def pages(self, state: AnyState, tokens: int) -> int:
        return -(-(state.length + tokens) // PAGE_TOKENS) if isinstance(state, cache.Sequence) else 0

    def park(self, state: AnyState) -> Parked:
        assert isinstance(state, cache.Sequence)
        return ParkedSequence(state, self.folder)


class ParkedSequence:
    """`sequence`, freed, and what it takes to have it back."""

    def __init__(self, sequence: cache.Sequence, folder: str | Path | None) -> None:
        self._pool, self._dtype, self._tail_every = sequence.pool, sequence.dtype, sequence.tail_every
        image = sequence.export()
        self._tokens, self._length, self._origin = image.tokens, image.length, image.origin
        shared = _shared(sequence)
        self._shared: list[Page] = list(sequence.pages[:shared])
        self._own = len(image.pages) - shared
        try:
            self._file = _written(folder, [*image.pages[shared:], *_optional(image.open_page)], pack_arrays(image.tail))
        except OSError as error:
            raise cache.CacheFull(
                f"a sequence cannot be set aside to make room for another: {error.strerror or error}; free some, or "
                "give the cache more"
            ) from error
        self._pool.share(self._shared)
        sequence.free()

    @property
    def pages(self) -> int:
        return self._own + (1 if self._length % PAGE_TOKENS else 0)

    def restore(self) -> cache.Sequence:
        size, count = self._pool.layout.page_bytes, self.pages
        pages, tail = self._file.read(size, count)
        sequence = cache.Sequence.restore(
            self._pool,
            cache.SequenceImage(
                length=self._length,
                tokens=self._tokens,
                pages=[*(page.data for page in self._shared), *pages[: self._own]],
                open_page=pages[-1] if count > self._own else None,
                tail=unpack_arrays(tail),
                origin=self._origin,
            ),
            dtype=self._dtype,
            tail_every=self._tail_every,
        )
        self.drop()
        return sequence

    def drop(self) -> None:
        self._pool.release(self._shared)
        self._shared = []
        self._file.close()


def _shared(sequence: cache.Sequence) -> int:
    """How many of the first full pages others hold as well."""
    pages = sequence.pages
    blocks = {page for block in pages.blocks if block.references > 1 for page in block.pages}
    count = 0
    for page in pages[: sequence.length // PAGE_TOKENS]:
        if page.references < 2 and page not in blocks:
            break
        count += 1
    return count


def _optional(page: Array | None) -> list[Array]:
    return [] if page is None else [page]


class _File:
    """Pages and a tail in a file without a name, and their checksums."""

    def __init__(self, file: BinaryIO, sums: list[bytes]) -> None:
        self._file, self._sums = file, sums

    def read(self, size: int, count: int) -> tuple[list[Array], bytes]:
        """`count` pages of `size` bytes each, and the tail. Raises `CacheError` when they are not what was written."""
        self._file.seek(0)
        parts = [bytearray(self._file.read(size)) for _ in range(count)]
        tail = self._file.read()
        if [*map(checksum, parts), checksum(tail)] != self._sums:
            raise cache.CacheError(
                "a sequence that was set aside on the disk did not come back as it was; run it again"
            )
        return [_bytes(part) for part in parts], tail

    def close(self) -> None:
        self._file.close()


def _bytes(data: bytearray) -> Array:
    return np.frombuffer(data, dtype=np.uint8)


def _written(folder: str | Path | None, pages: list[Array], tail: bytes) -> _File:
    parts = [*map(array_bytes, pages), memoryview(tail)]
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, it stays open
    try:
        for part in parts:
            file.write(part)
        file.flush()
    except BaseException:
        file.close()
        raise
    return _File(file, [checksum(part) for part in parts])
