"""How the command line speaks: two streams, tables for people, JSON for machines, one line for an error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

FAILED = 1
"""Exit code when the work could not be done. Usage errors exit with 2, Ctrl-C with 130."""
INTERRUPTED = 130


def notes() -> Console:
    """The console for progress and notes: stderr, as it is at the time of the call."""
    return Console(stderr=True, highlight=False)


def results() -> Console:
    """The console for results: stdout. Off a terminal it is wide, so that a table's lines stay whole for grep."""
    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=False, width=200 if piped else None)


def print_json(document: Any) -> None:
    """One JSON document on stdout, as UTF-8-safe ASCII, with a final newline."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def note(message: str) -> None:
    """One line for the person, on stderr."""
    notes().print(message, markup=False, soft_wrap=True)


class UserError(Exception):
    """Something the person can put right; its text says what was wrong and what to do."""


class Commands(TyperGroup):
    """A group of commands that turns expected failures into one line on stderr and exit code 1.

    Expected are `UserError`, the system's refusals (`OSError`) and every exception class that Foveal defines: their
    messages are written for the person. Anything else is a fault in Foveal and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not _is_expected(error):
                raise
            note(f"foveal: {_one_line(error)}")
            raise typer.Exit(FAILED) from None


def _is_expected(error: Exception) -> bool:
    if isinstance(error, BrokenPipeError):  # stdout's reader went away: `main` ends in silence
        return False
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == "foveal"


def _one_line(error: Exception) -> str:
    """The message of `error`, its lines joined; system errors in the form ``file: what happened``."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        text = f"{named}{error.strerror}"
    return " ".join(text.split()) or type(error).__name__


# ---------------------------------------------------------------------- numbers for people

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_count(text: str) -> int:
    """A number with an optional binary suffix: ``4096``, ``128k``, ``1M`` (1,048,576), ``64KiB``.

    Raises `typer.BadParameter` (a usage error) for anything else.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kKmMgGtT]?)(?:i?[bB])?\s*", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number; write one like 4096, 128k or 1M")
    return int(float(re.sub("[_,]", "", match[1])) * _UNITS[match[2].lower()])


def show_bytes(count: float) -> str:
    """A byte count with a binary unit and three significant digits: ``584 B``, ``3.43 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.2f} TiB" if size < 1000 else f"{size:,.0f} TiB"


def show_seconds(seconds: float) -> str:
    """A duration: ``7.4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def table(*columns: str, title: str | None = None, rows: Iterable[Sequence[str]] = ()) -> Table:
    """A plain table; a column whose name ends in ``>`` is set flush right. Cells are shown as they are (no markup)."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    for column in columns:
        right = column.endswith(">")
        made.add_column(column.removesuffix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(_plain(cell) for cell in row))
    return made


def _plain(cell: str) -> str:
    return cell.replace("[", r"\[")
