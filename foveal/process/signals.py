"""Signals that ask a process to end: at once before and after its work, in between as an exception that cleans up."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C, and after any signal to a command that keeps what was done."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.02


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""


class _State:
    """Of this process."""

    working = False
    """Whether there is work that would clean up behind itself; else a signal ends the process at once."""
    keeps = False
    """Whether any signal ends it with `INTERRUPTED`."""
    received: int | None = None
    """The first signal that asked for the end."""


def take(*, keeps: bool = False) -> None:
    """From now on Ctrl-C, SIGTERM and SIGHUP end the process: with 128 and their number, or all with 130 if it `keeps`
    what was done."""
    _State.keeps = keeps
    for number in heard():
        signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _once_more)


def heard() -> list[int]:
    """Signals that ask this process to end, but for those ignored when it began (``nohup``, a shell's ``&``)."""
    return [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def raise_them(working: bool) -> None:
    """Whether a signal is raised as `Stopped` from now on (there is work), or ends the process at once."""
    _State.working = working


def exit_code() -> int | None:
    """What the process exits with for the signal that it got; None if there was none."""
    if _State.received is None:
        return None
    return INTERRUPTED if _State.keeps else 128 + _State.received


def _on_signal(number: int, frame: FrameType | None) -> None:
    first = _State.received is None
    if first:
        _State.received = number
    if not _State.working:
        os._exit(exit_code() or 0)
    # An extension module that is stopped in its initialisation may abort the process.
    if first and _is_importing(frame):
        raise_later()
        return
    raise Stopped


def _once_more(number: int, frame: FrameType | None) -> None:
    if not _State.working or _State.received is None:
        return
    if _is_importing(frame):
        raise_later()
    else:
        raise Stopped


def raise_later() -> None:
    """Raise `Stopped` again in a moment: here it would be lost."""
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def shielded(start: Callable[[], Any]) -> Any:
    """`start()`, which starts a process that Ctrl-C shall not reach: its parent hears it and tells it to end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process has its parent's mask
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
