"""Consoles and tables, drawn by rich. It takes a while to import: only what really draws imports this."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveal.process.text import printable


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


def print_blocks(*blocks: Table) -> None:
    """Tables on stdout, an empty line after each."""
    out = results()
    for block in blocks:
        out.print(block)
        out.print()


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
