"""What a person sees while long work is done: a bar or a line on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from foveal.cli.output import note, show_seconds
from foveal.process.signals import heard
from foveal.process.streams import tell_at_once

if TYPE_CHECKING:
    from foveal.memory import Progress

LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class _Live:
    """What is shown on a terminal, and told in lines elsewhere. `at_once`: the first line does not wait."""

    def __init__(self, *, silent: bool = False, at_once: bool = False) -> None:
        self._silent = silent
        self._live = sys.stderr.isatty() and not silent
        self._next_line = time.monotonic() + (0 if at_once else LINE_EVERY)

    def tell(self, line: str) -> None:
        """`line`, where there is no terminal, if it is time for one."""
        if not self._live and not self._silent and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            note(line)


class LiveBar(_Live):
    """How far long work is: a bar on a terminal, a line every `LINE_EVERY` seconds elsewhere. A context manager.

    `silent`: neither. `at_once`: the first line does not wait.
    """

    def __init__(self, description: str, *, silent: bool = False, at_once: bool = False) -> None:
        super().__init__(silent=silent, at_once=at_once)
        self._bar = None
        if self._live:
            from foveal.cli.bars import Bar

            self._bar = Bar(description)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.progress.stop()

    def show(self, description: str, done: float, total: float | None, count: str, file: str = "") -> None:
        """On a terminal: `done` of `total` (None: not known yet), in words `count`, at `file`."""
        if self._bar is not None:
            self._bar.show(description, done, total, count, file)


class StatusLine(_Live):
    """What is being done: one line on stderr that changes, on a terminal. A context manager."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._status = None
        if self._live:
            from foveal.cli.bars import status

            self._status = status(text)

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing more is shown."""
        if self._status is not None:
            self._status.stop()

    def show(self, text: str) -> None:
        """`text` instead of what the line says, on a terminal."""
        if self._status is not None:
            from foveal.cli.render import plain

            self._status.update(plain(text))


class ReadingBar(LiveBar):
    """Shows `Progress` objects as they come. Call it as the `progress` of `Memory.read`."""

    def __init__(self) -> None:
        super().__init__("opening")
        self.reading = False
        """Whether the network runs: from here on what was done can be kept."""

    def __call__(self, progress: Progress) -> None:
        self.reading = progress.exact and not progress.again
        count = describe(progress)
        total = progress.tokens_total if progress.exact else None
        doing = "reading" if self.reading else "going back" if progress.again else "looking"
        self.show(doing, progress.tokens_done, total, count, progress.file)
        if progress.exact:
            self.tell(f"{count}, {progress.file}" if self.reading else count)


def describe(progress: Progress) -> str:
    """``12,288 of 48,378 tokens, 812 tok/s, 44.4 s left``; while looking, how much there may be; while a window is run
    again, ``128 of 640 tokens again``."""
    if not progress.exact:
        return f"about {progress.tokens_total:,} tokens"
    again = " again" if progress.again else ""
    parts = [f"{progress.tokens_done:,} of {progress.tokens_total:,} tokens{again}"]
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tok/s")
    if progress.seconds_left is not None:
        parts.append(f"{show_seconds(progress.seconds_left)} left")
    return ", ".join(parts)


class Interruption:
    """Whether the person asked to stop. The first Ctrl-C (or SIGTERM) while the network runs lets the chunk in work
    come to its end; the second, and any before, is a `KeyboardInterrupt` at once."""

    def __init__(self, bar: ReadingBar, kept: str = "what was read is kept") -> None:
        self._bar, self._kept = bar, kept
        self.asked = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.asked

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self._bar.reading:
            before = self._before.get(number)
            if callable(before):
                before(number, frame)
            raise KeyboardInterrupt
        self.asked = True
        tell_at_once(f"stopping after this chunk; {self._kept}")

    @contextmanager
    def watch(self) -> Iterator[Self]:
        """Take the signals for the time of a ``with`` block, and give them back after it."""
        for number in heard():
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._on_signal)
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
