"""Letting go of mapped files: apart from the pager, since the store's files are mapped where no torch is loaded."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

STRIDE = 16 << 20
"""Memory is let go in pieces of so many bytes; the pager's scratch file grows, and is given back, by as many."""


def let_go_of(mapped: mmap.mmap) -> Iterator[None]:
    """Let go of a mapped file piece by piece. Only for maps that are shared, or were never written to."""
    size = len(mapped)
    for start in range(0, size, STRIDE):
        mapped.madvise(mmap.MADV_DONTNEED, start, min(STRIDE, size - start))
        yield
