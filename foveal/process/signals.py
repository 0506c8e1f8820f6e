"""Signals that ask a process to end: at once before and after its work, in between as an exception that cleans up."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its wrappers in `signal` take longer than what is held back for
import os
import signal
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

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


class held_back:
    """The block is done whole: Python's handlers of the signals that ask for the end run where it ends.

    For blocks of microseconds. Handlers run in the main thread only; in another one this does nothing.
    """

    def __init__(self) -> None:
        self._handlers: list[tuple[int, Callable[[int, FrameType | None], object]]] = []
        self._came: list[int] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in (*_SIGNALS, signal.SIGALRM):
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers.append((number, handler))
                    _signal.signal(number, self._note)
        except BaseException:
            self._put_back()
            raise

    def __exit__(self, *_: object) -> None:
        self._put_back()
        for number in self._came:
            signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)

    def _put_back(self) -> None:
        """All handlers, even where one that is back already runs and raises."""
        try:
            while self._handlers:
                number, handler = self._handlers[-1]
                _signal.signal(number, handler)
                self._handlers.pop()
        finally:
            if self._handlers:
                self._put_back()


class shielded:
    """In it processes are started that Ctrl-C shall not reach: their parent hears it and tells them to end.

    Ctrl-C meanwhile is raised where the block ends: whoever keeps what was started must be in a ``try`` already.
    """

    def __init__(self) -> None:
        self._held = held_back()  # the mask is this thread's: another one may get the signal for it

    def __enter__(self) -> None:
        self._held.__enter__()
        # A new process has its parent's mask.
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
        self._held.__exit__()
