"""The runtime that the operations of this backend share when they are called one by one."""

from __future__ import annotations

from functools import cache

from foveal import _native


@cache
def runtime() -> _native.Runtime:
    """Threads on all physical cores; products exact to about 1e-5, so that it can stand in for the reference."""
    return _native.Runtime(exact=True)
