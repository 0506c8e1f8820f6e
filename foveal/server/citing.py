"""Which lines of a memory an answer came from, and whether the files still say so."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from foveal.memory import Citation, Memory, ReadError
from foveal.memory.cited import lines_of


def described(memory: Memory, citation: Citation) -> dict[str, Any]:
    """A citation as JSON: file, lines, share, the digest of the lines as the memory read them, and whether they are
    stale. `stale` is None where the source cannot be looked at."""
    told = {
        "path": citation.path,
        "first_line": citation.first_line,
        "last_line": citation.last_line,
        "share": round(citation.share, 4),
        "outdated": citation.outdated,
    }
    return told | freshness(memory, citation.path)


def freshness(memory: Memory, path: str) -> dict[str, Any]:
    """The digest of a file as it was read, and whether it is another one now."""
    read = text_of(memory, path) or ""
    try:
        now = "".join(f"{line}\n" for _, line in lines_of(memory.options, path))
    except ReadError:
        return {"sha256": _digest(read), "stale": None}
    return {"sha256": _digest(read), "stale": _digest(now) != _digest(read)}


def text_of(memory: Memory, path: str) -> str | None:
    """The text of a file's latest version in a memory, without the header; None if there is no such file."""
    found = None
    for number, (name, first, after) in enumerate(memory.places.documents):
        starts = memory.places.line_starts(number)
        if name == path and len(starts) > 1:
            whole = memory.engine.tokenizer.decode(memory.sequence.token_range(first, after).tolist())
            found = whole[int(starts[1]) :]
    return found


def lines_in(text: str) -> list[str]:
    """The lines of a file without their ends, numbered as citations number them: only a line feed ends one."""
    lines = text.split("\n")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]


def _digest(text: str) -> str:
    """Of the lines, whatever ends the last one."""
    return sha256(text.rstrip("\n").encode("utf-8", "surrogatepass")).hexdigest()
