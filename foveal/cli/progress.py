"""What a person sees while a source is read: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from foveal.cli.output import note, notes, show_seconds

if TYPE_CHECKING:
    from foveal.memory import Progress

LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class _Count(ProgressColumn):
    """Tokens done of all, speed and time left, as far as they are known."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["count"])


class ReadingBar:
    """Shows `Progress` objects as they come; a context manager. Call it as the `progress` of `Memory.read`."""

    def __init__(self) -> None:
        console = notes()
        self._live = console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Count(),
            TextColumn("[dim]{task.fields[file]}"),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._task = self._bar.add_task("opening", total=None, count="", file="")
        self._next_line = time.monotonic() + LINE_EVERY
        self.reading = False
        """Whether the network runs: from here on what was done can be kept."""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        self.reading = progress.exact
        count = describe(progress)
        if self._live:
            self._bar.update(
                self._task,
                description="reading" if progress.exact else "looking",
                completed=progress.tokens_done,
                total=progress.tokens_total if progress.exact else None,
                count=count,
                file=_plain(progress.file),
            )
        elif progress.exact and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            note(f"{count}, {progress.file}")


def describe(progress: Progress) -> str:
    """``12,288 of 48,378 tokens, 812 tok/s, 44.4 s left``; while looking, how much there may be."""
    if not progress.exact:
        return f"about {progress.tokens_total:,} tokens"
    parts = [f"{progress.tokens_done:,} of {progress.tokens_total:,} tokens"]
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tok/s")
    if progress.seconds_left is not None:
        parts.append(f"{show_seconds(progress.seconds_left)} left")
    return ", ".join(parts)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


class Interruption:
    """Whether the person asked to stop. The first Ctrl-C (or SIGTERM) while the network runs lets the chunk in work
    come to its end; the second, and any before, is a `KeyboardInterrupt` at once."""

    def __init__(self, bar: ReadingBar) -> None:
        self._bar = bar
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self._bar.reading:
            raise KeyboardInterrupt
        self.asked = True
        note("stopping after this chunk; what was read is kept")

    @contextmanager
    def watch(self) -> Iterator[Self]:
        """Take the signals for the time of a ``with`` block, and give them back after it."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
