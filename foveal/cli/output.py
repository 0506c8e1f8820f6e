"""How the command line speaks: two streams, JSON for machines, one line for an error, numbers for people.

All text goes out through `note` and `tell`, and the consoles and tables of `foveal.cli.render`. They show names and
messages as `printable` does: no file name can steer the terminal of who lists it.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from foveal.errors import FovealError, ParameterError
from foveal.process import text as process_text
from foveal.process.failures import FAILED
from foveal.process.signals import INTERRUPTED
from foveal.process.streams import told as note
from foveal.process.text import one_line, printable

__all__ = ["FAILED", "INTERRUPTED", "UserError", "note", "one_line", "printable"]


class UserError(FovealError):
    """Something the person can put right; its text says what was wrong and what to do."""

    code = "invalid_request"


def print_json(document: Any) -> None:
    """One JSON document on stdout, as UTF-8-safe ASCII, with a final newline."""
    import json

    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def tell(message: str) -> None:
    """One line of results, on stdout."""
    sys.stdout.write(printable(message) + "\n")
    sys.stdout.flush()


def write(text: str) -> None:
    """Write a model's text to stdout at once. It may hold anything: a pipe gets it as it is, but for what stdout's
    encoding lacks; a terminal gets it as `printable`, so that it cannot steer it."""
    if sys.stdout.isatty():
        text = printable(text, "\n\t")
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


# ---------------------------------------------------------------------- numbers for people


def parse_count(text: str) -> int:
    """`foveal.process.text.parse_count`. Raises `click.BadParameter` (a usage error) instead."""
    try:
        return process_text.parse_count(text)
    except ParameterError as error:
        raise click.BadParameter(str(error)) from error


def parse_counts(text: str) -> tuple[int, ...]:
    """``512,4k,1M`` as numbers, ascending, each once. Raises what `parse_count` does."""
    return tuple(sorted({parse_count(part) for part in text.split(",")}))


def parse_limit(text: str | None) -> int | None:
    """The count of an option that may be left out (None)."""
    return None if text is None else parse_count(text)


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
