"""Bars and status lines on a terminal, drawn by rich."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, TextColumn
from rich.status import Status

from foveal.cli.render import notes, plain
from foveal.process.text import printable


class Bar:
    """One bar on stderr: what is done, the bar, how far, and at which file."""

    def __init__(self, description: str) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[file]}", style="dim", markup=False),
            console=notes(),
            transient=True,
        )
        self._task = self.progress.add_task(printable(description), total=None, count="", file="")

    def show(self, description: str, done: float, total: float | None, count: str, file: str) -> None:
        """`done` of `total` (None: not known yet), in words `count`, at `file`."""
        description, count, file = printable(description), printable(count), printable(file)
        self.progress.update(self._task, description=description, completed=done, total=total, count=count, file=file)


def status(text: str) -> Status:
    """A line on stderr that changes; give its `update` what `plain` returns."""
    return notes().status(plain(text))
