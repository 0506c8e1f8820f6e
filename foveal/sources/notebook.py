"""Jupyter notebooks as text: the cells and what they printed, line by line as the file has them.

A notebook is JSON in which, in the usual layout, each line of a cell lies on a line of its own. So each line of the
text knows its line in the file, and an editor finds it there. The order is the file's, in which outputs come before
their source. Pictures and other data in base64 are left out, and so are results that are no plain text.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from json import JSONDecoder
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_DATA = re.compile(r"data:([\w.+/-]*(?:;[\w=.-]+)*);base64,[A-Za-z0-9+/=_%-]{40,}")
_STRING = re.compile(r'"[A-Za-z0-9+/]{72,}={0,2}(?:\\n)*"')
"""A string of nothing but base64, or one line of it."""
_TEXTS = ("text/plain", "text/markdown", "text/latex")
"""What is read of a result: the first of these that it has."""

Numbered = list[tuple[int, str]]


class _Placed(str):
    """A string of a JSON document that knows the character at which it begins."""

    place: int


def is_notebook(path: str) -> bool:
    """Whether a file of this name is a notebook."""
    return path.lower().endswith(".ipynb")


def notebook_text(text: str) -> tuple[str, tuple[int, ...]] | None:
    """The text of a notebook's cells, and for each of its lines the line of the file; None if it is no notebook."""
    try:
        cells = _cells(_parse(text))
        ends = [match.start() for match in re.finditer("\n", text)]
        lines: Numbered = []
        for number, cell in enumerate(cells, 1):
            lines += _cell_lines(number, cell, lambda place: bisect.bisect_left(ends, place) + 1)
        if cells and not lines and not any(_field(cell, "cell_type") for cell in cells):
            return None
    except (ValueError, LookupError, RecursionError):
        return None
    return "".join(f"{line}\n" for _, line in lines), _ascending([number for number, _ in lines])


def without_data(text: str) -> str:
    """`text`, of a notebook that is broken, without its pictures and other data; its lines stay what they are."""
    return _STRING.sub('"..."', _DATA.sub(r"data:\1;base64,...", text))


def _parse(text: str) -> Any:
    """The document, its strings (not the names of fields) as `_Placed`."""
    decoder: Any = JSONDecoder(strict=False, parse_int=float)  # a number may have any count of digits

    def string(source: str, end: int, strict: bool) -> tuple[str, int]:
        found, after = scanstring(source, end, strict)
        placed = _Placed(found)
        placed.place = end - 1
        return placed, after

    decoder.parse_string = string
    decoder.scan_once = py_make_scanner(decoder)
    return decoder.decode(text)


def _cells(document: Any) -> Sequence[Any]:
    """The cells of a notebook of any version. Raises `ValueError` when there are none where they should be."""
    if not isinstance(document, dict):
        raise ValueError("no object")
    if isinstance(document.get("cells"), list):
        return document["cells"]
    sheets = document.get("worksheets")
    if not isinstance(sheets, list):
        raise ValueError("no cells")
    return [cell for sheet in sheets for cell in _list(_field(sheet, "cells"))]


def _cell_lines(number: int, cell: Any, line_of: Callable[[int], int]) -> Numbered:
    """The lines of one cell, in the order in which its fields stand in the file. What is no text, or of another form
    than the format has, is left out."""
    kind = _field(cell, "cell_type")
    lines: Numbered = []
    for name, value in cell.items() if isinstance(cell, dict) else ():
        if name in ("source", "input"):
            found = _joined(value, line_of)
            title = f"# %% cell {number} ({kind})" if isinstance(kind, str) else f"# %% cell {number}"
        elif name == "outputs":
            found = [line for output in _list(value) for line in _output_lines(output, line_of)]
            title = f"# %% cell {number}, its output"
        else:
            continue
        if any(line for _, line in found):
            lines += [(max(1, found[0][0] - 1), title), *found]
    return lines


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _output_lines(output: Any, line_of: Callable[[int], int]) -> Numbered:
    data = _field(output, "data")
    if (traceback := _field(output, "traceback")) is not None:
        found = _joined(traceback, line_of, separate=True)
    elif data is not None:
        found = _joined(next((text for name in _TEXTS if (text := _field(data, name))), None), line_of)
    else:
        found = _joined(_field(output, "text"), line_of)
    return [(number, _ANSI.sub("", line).rstrip("\r").rpartition("\r")[2]) for number, line in found]


def _joined(value: Any, line_of: Callable[[int], int], *, separate: bool = False) -> Numbered:
    """The lines of a text that is one string or a list of parts. `separate`: each part begins a line."""
    lines: Numbered = []
    open_line = False
    for part in [value] if isinstance(value, str) else _list(value):
        if not isinstance(part, _Placed):
            continue
        number = line_of(part.place)
        for place, line in enumerate(_DATA.sub(r"data:\1;base64,...", part).split("\n")):
            if place == 0 and open_line and not separate:
                before, begun = lines.pop()
                lines.append((before if begun else number, begun + line))
            else:
                lines.append((number, line))
        open_line = True
    if lines and not lines[-1][1]:
        lines.pop()
    return lines


def _ascending(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(_highest(numbers))


def _highest(numbers: Sequence[int]) -> Iterator[int]:
    most = 1
    for number in numbers:
        most = max(most, number)
        yield most
