"""Room for what ends the process when there is none.

Where address space is limited (``ulimit -v``), libraries written in Rust abort when an allocation fails, and torch's
may crash while they are loaded. So it is asked beforehand whether there is room for them. Without such a limit nothing
is asked.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_MIB = 1 << 20
_LIBRARIES = {"torch": 576 * _MIB, "tokenizers": 48 * _MIB, "safetensors": 16 * _MIB, "pydantic_core": 24 * _MIB}
"""Packages, and bytes of address space that must be free before they are imported; torch's is that of its CPU build."""


def require(size: int, what: str) -> None:
    """Raise `MemoryError` where the process may not take `size` more bytes of address space, which `what` needs."""
    if not _is_limited():
        return
    import mmap

    try:
        mmap.mmap(-1, size).close()
    except (OSError, OverflowError):
        raise MemoryError(f"{what} needs {-(-size // _MIB):,} MiB of address space more (ulimit -v)") from None


def guard_imports() -> None:
    """From now on `require` is asked before a library is imported that would end the process."""
    if _is_limited():
        sys.meta_path.insert(0, _Guard())


def _is_limited() -> bool:
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


class _Guard:
    """Finds no modules; looks at who is about to be imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name in _LIBRARIES:
            require(_LIBRARIES[name], name)
