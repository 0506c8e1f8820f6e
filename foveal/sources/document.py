"""What reading a source gives: documents, and an account of everything that was left out."""

from __future__ import annotations

from dataclasses import dataclass

from foveal.sources.header import header_line


@dataclass(frozen=True)
class Document:
    """One text, with the path people know it by (relative to what was read, forward slashes)."""

    path: str
    text: str
    """The file's text as it is: line ends are kept; only a byte-order mark is dropped."""
    encoding: str = "utf-8"
    """Python's name of the encoding it was read in."""
    replaced: int = 0
    """How many malformed byte sequences became U+FFFD: if not 0, the text is not all that was in the file."""


@dataclass(frozen=True)
class Skipped:
    """Something that was not read, and why. The path of a folder ends in ``/`` and stands for all that is in it."""

    path: str
    reason: str


def document_text(document: Document) -> str:
    """What the model reads: the header line, the text, and a line end if the text has none at its end.

    (The next document's header thus always begins a line.)
    """
    ending = "" if not document.text or document.text.endswith(("\n", "\r")) else "\n"
    return f"{header_line(document.path)}{document.text}{ending}"
