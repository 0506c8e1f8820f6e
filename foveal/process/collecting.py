"""Whether this thread is in the middle of a garbage collection: what a finaliser does then must wait for nobody, since
the thread may hold a lock that others wait for."""

from __future__ import annotations

import gc
import threading


class _State:
    """Of this process. One thread collects at a time."""

    collector: int | None = None


def here() -> bool:
    """Whether the caller is a finaliser that a garbage collection runs."""
    return _State.collector == threading.get_ident()


def _note(phase: str, info: dict[str, int]) -> None:
    _State.collector = threading.get_ident() if phase == "start" else None


gc.callbacks.append(_note)
