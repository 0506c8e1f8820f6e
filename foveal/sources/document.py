"""What reading a source gives: documents, and an account of everything that was left out."""

from __future__ import annotations

from dataclasses import dataclass

from foveal.errors import FovealError
from foveal.sources.header import header_line


class SourceError(FovealError, ValueError):
    """What was asked to be read does not exist or cannot be read at all."""

    code = "invalid_request"


@dataclass(frozen=True)
class Document:
    """One text, with the path people know it by (relative to what was read, forward slashes)."""

    path: str
    text: str
    """The file's text as it is: line ends are kept; only a byte-order mark is dropped. Of a notebook: its cells."""
    encoding: str = "utf-8"
    """The name of the encoding it was read in."""
    replaced: int = 0
    """How many replacement characters (U+FFFD) stand for malformed bytes: if not 0, the text is not all of the file."""
    numbers: tuple[int, ...] | None = None
    """For each line of the text the line of the file it comes from, ascending from 1; None where they are the same."""


@dataclass(frozen=True)
class Skipped:
    """Something that was not read, and why. The path of a folder ends in ``/`` and stands for all that is in it."""

    path: str
    reason: str


def numbered_lines(document: Document) -> list[tuple[int, str]]:
    """The lines of the text without their ends, each with its number in the file, counted from 1."""
    lines = document.text.removesuffix("\n").split("\n")
    return list(zip(document.numbers or range(1, len(lines) + 1), lines, strict=True))


def document_text(document: Document) -> str:
    """What the model reads: the header line, the text, and a line end if the text has none at its end.

    (The next document's header thus always begins a line.)
    """
    ending = "" if not document.text or document.text.endswith("\n") else "\n"
    return f"{header_line(document.path)}{document.text}{ending}"
