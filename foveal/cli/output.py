"""How the command line speaks: two streams, tables for people, JSON for machines, one line for an error.

All text goes out through `note`, `tell`, `results` and `table`, which show names and messages as `printable` does: no
file name can steer the terminal of who lists it.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from foveal.process.failures import FAILED, reason, show_traceback
from foveal.process.signals import INTERRUPTED
from foveal.process.streams import OutputFailed
from foveal.process.streams import told as note
from foveal.process.text import one_line, printable

__all__ = ["FAILED", "INTERRUPTED", "Commands", "UserError", "note", "one_line", "printable"]


class _Plain(Console):
    """A console for plain text: no markup, and what is no table or bar is shown as `printable` (lines stay lines)."""

    def print(self, *objects: Any, **options: Any) -> None:
        shown = (plain(each, "\n") if isinstance(each, str) else each for each in objects)
        super().print(*shown, **options)


def plain(text: str, keep: str = "") -> Text:
    """`text` for a table, a bar or a status line: `printable`, and nothing in it is taken for markup."""
    return Text(printable(text, keep))


def notes() -> Console:
    """The console for progress and notes: stderr, as it is at the time of the call."""
    return _Plain(stderr=True, highlight=False)


def results() -> Console:
    """The console for tables: stdout. Off a terminal it is wide, so that a table's lines stay whole for grep."""
    piped = not sys.stdout.isatty()
    return _Plain(highlight=False, soft_wrap=False, width=200 if piped else None)


def print_json(document: Any) -> None:
    """One JSON document on stdout, as UTF-8-safe ASCII, with a final newline."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def tell(message: str) -> None:
    """One line of results, on stdout."""
    sys.stdout.write(printable(message) + "\n")
    sys.stdout.flush()


class UserError(Exception):
    """Something the person can put right; its text says what was wrong and what to do."""


class Commands(TyperGroup):
    """A group of commands that turns expected failures into one line on stderr and exit code 1.

    Expected is what `foveal.process.reason` has words for: `UserError` and every exception class that Foveal defines,
    the system's refusals, and that something ran out. Anything else goes up, to `foveal.process.run`.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = None if isinstance(error, OutputFailed | typer.Exit | typer.Abort) else reason(error)
            if line is None:
                raise
            show_traceback(error)
            note(f"foveal: {one_line(line)}")
            raise typer.Exit(FAILED) from None

    def main(
        self, args: Any = None, prog_name: str | None = None, *rest: Any, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """As typer's, but wrong usage is shown as `printable`, and nothing else is caught."""
        try:
            code = super().main(args, prog_name, *rest, **extra | {"standalone_mode": False})
        except typer.Abort:
            note("foveal: aborted")
            code = FAILED
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            code = _wrong_usage(error)
        if not standalone_mode:
            return code
        _exit(code)


def _wrong_usage(error: Any) -> int:
    """Show the usage and what was wrong with it; the exit code."""
    shown = io.StringIO()
    error.show(shown)
    sys.stderr.write(printable(shown.getvalue(), "\n"))
    sys.stderr.flush()
    return int(error.exit_code)


def _exit(code: Any) -> NoReturn:
    sys.exit(code if isinstance(code, int) else 0)


# ---------------------------------------------------------------------- numbers for people

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MOST = 1 << 63


def parse_count(text: str) -> int:
    """A number with an optional binary suffix: ``4096``, ``128k``, ``1M`` (1,048,576), ``64KiB``.

    Raises `typer.BadParameter` (a usage error) for anything else.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kKmMgGtT]?)(?:i?[bB])?\s*", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number; write one like 4096, 128k or 1M")
    count = Fraction(re.sub("[_,]", "", match[1])) * _UNITS[match[2].lower()]
    if count >= _MOST:
        raise typer.BadParameter(f"{text!r} is too large a number")
    return int(count)


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
    """A plain table; a column whose name ends in ``>`` is set flush right. Cells are plain text, not markup."""
    made = _PlainTable(title=title, title_justify="left", box=None, pad_edge=False)
    made.header_style = made.title_style = "bold"
    for column in columns:
        right = column.endswith(">")
        made.add_column(plain(column.removesuffix(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


class _PlainTable(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in cells), **options)
