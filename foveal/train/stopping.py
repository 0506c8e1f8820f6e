"""Ctrl-C and its like during training: the step in work is done, then the run saves and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from foveal.process.signals import heard
from foveal.process.streams import tell_at_once


@contextmanager
def asked_to_stop(stop: Callable[[], None]) -> Iterator[None]:
    """Within it the first signal that ends processes calls `stop` and says so; the second does what it did before."""
    previous: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        tell_at_once("stopping after this step; the same command goes on from here")
        stop()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():  # elsewhere the caller handles signals
        for number in heard():
            previous[number] = signal.getsignal(number)
            signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
