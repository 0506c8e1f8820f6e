"""A bound on the memory a process holds: pages lie in files, and what was not touched lately is let go.

Nothing is copied in or out. What grows with a context (pages, their packs, kept tails) lies in files that are mapped:
pages of a store in its packs, all else in scratch files without names. Letting go is telling the system that this
process does not need a range of a file just now; whoever touches it again, be it in the middle of a step, gets the same
bytes back from the system's cache or from the disk. So a limit costs time and never changes a token.

The bound is on what the system counts as this process's resident memory, everything included. A thread looks at it as
often as it could have grown, and lets go of mapped memory, one piece after the other, before the limit is reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from foveal.cache.errors import CacheError, CacheFull
from foveal.cache.mapped import STRIDE, let_go_of
from foveal.formats import Array
from foveal.process.logs import logger

_log = logger(__name__)

HEADROOM = 32 << 20
"""Memory is let go so many bytes below the limit, at least; and at least a tenth of it below."""
_FASTEST = 24 << 30
"""Bytes a second by which a process can grow at most by touching what lies in the system's cache, and a reserve for a
thread that wakes up late: with a quarter of it, a limit was passed by a hundred megabytes now and then."""
_SHORTEST, _LONGEST = 0.0005, 0.05
"""Seconds between two looks."""
_ALIGN = 64


class LimitTooSmall(CacheError):
    """The process holds more than the limit allows, in memory that cannot be let go. `minimum`: bytes it needs."""

    code = "full"

    def __init__(self, limit: int, minimum: int) -> None:
        self.minimum = minimum
        needed = math.ceil(minimum / 2**20)
        super().__init__(
            f"the memory limit of {limit / 2**20:,.0f} MiB is too small: the program, the model and what a step works "
            f"with need {needed:,} MiB; give at least {needed}M"
        )


class Pager:
    """Keeps this process's resident memory under `limit` bytes. `folder` is where the scratch file lies (default: the
    system's temporary folder; it should be on a disk).

    Raises `LimitTooSmall` when the process holds too much already, `CacheError` where the system cannot do it.
    """

    def __init__(self, limit: int, folder: str | Path | None = None) -> None:
        if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_DONTNEED"):
            raise CacheError("a memory limit needs Linux; leave it out here")
        self.limit = limit
        self.folder = Path(folder or tempfile.gettempdir())
        self._allocating, self._letting_go = threading.Lock(), threading.Lock()
        self._segment: _Segment | None = None
        self._used = 0
        self._mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._sweep: Iterator[None] = iter(())
        self._floor = max(HEADROOM, limit // 10)
        self._headroom: float = self._floor
        self._held = self._least = resident()
        self.check()
        threading.Thread(target=_watch, args=(weakref.ref(self),), name="foveal-pager", daemon=True).start()

    def add(self, mapped: mmap.mmap) -> None:
        """Let go of this map too, for as long as it lives. It must be shared, or never be written to."""
        with self._allocating:
            self._mapped.add(mapped)

    def zeros(self, size: int) -> Array:
        """uint8 [size] of zeros in the scratch file, from a multiple of 64 bytes on. Its room is given back when nobody
        holds what lies beside it either. Raises `CacheFull` when the disk has no room."""
        if not size:
            return np.empty(0, dtype=np.uint8)
        with self._allocating:
            start = -(-self._used // _ALIGN) * _ALIGN
            if self._segment is None or start + size > self._segment.size:
                start = 0
                self._segment = _Segment(self.folder, max(STRIDE, size))
                self._mapped.add(self._segment.map)
            self._used = start + size
            return np.frombuffer(self._segment.view[start : start + size], dtype=np.uint8)

    def keep(self, array: Array) -> Array:
        """A copy of `array` that can be let go."""
        copy = self.zeros(array.nbytes).view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    def relieve(self) -> float:
        """Let go of as much as is needed; returns how many bytes the process may grow until it is needed again."""
        with self._letting_go:
            held = resident()
            # How much it grew since the last look says how early the next one has to act.
            grown = min(2 * (held - self._held), (self.limit - self._least) / 2)
            self._headroom = max(self._floor, grown, self._headroom * 0.995)
            if held >= self.limit - self._headroom:
                _log.debug("memory limit: %d bytes held of %d, pages are let go", held, self.limit)
                held = self._let_go(self.limit - 1.5 * self._headroom)
            self._held = held
            return self.limit - self._headroom - held

    def check(self) -> None:
        """Raises `LimitTooSmall` when, with all let go, too little is left to work with."""
        if self._least <= self.limit - 2 * self._floor:
            return
        with self._letting_go:
            _trim_heap()
            self._let_go(0)
            least = self._least
        if least > self.limit - 2 * self._floor:
            raise LimitTooSmall(self.limit, max(least + 2 * HEADROOM, least * 10 // 8) + (4 << 20))

    def _let_go(self, goal: float) -> int:
        """Let go until the process holds `goal` bytes; returns what it holds."""
        for _ in range(2):  # what is left of the last sweep, then a whole one
            for _ in self._sweep:
                held = resident()
                if held < goal:
                    return held
            self._sweep = self._pieces()
        self._least = resident()
        return self._least

    def _pieces(self) -> Iterator[None]:
        with self._allocating:
            held = list(self._mapped)
        for mapped in held:
            yield from let_go_of(mapped)


class _Segment:
    """A piece of the scratch file: a file of its own without a name, which goes when nobody holds any of it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                self.map = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise CacheFull(
                f"the memory limit needs {size >> 20} MiB more on the disk, in {folder}: {error.strerror}"
            ) from error
        self.view = memoryview(self.map)


def resident() -> int:
    """Bytes of memory this process holds."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def _trim_heap() -> None:
    """Give back what was freed but is kept for the next allocation, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _watch(which: weakref.ref[Pager]) -> None:
    """Relieve a pager for as long as it lives."""
    with contextlib.suppress(OSError):  # be there in time also when all cores are busy, where that is allowed
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    while (pager := which()) is not None:
        room = pager.relieve()
        del pager
        time.sleep(min(max(room / _FASTEST, _SHORTEST), _LONGEST))
