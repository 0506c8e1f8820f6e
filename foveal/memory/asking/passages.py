"""A text cut into passages: what is found as one, cited as one, and read again as one.

Cuts are made where a reader would make them. A definition, a heading or a list of paragraphs begins a passage; lines
that belong together stay together as long as there is room. A line that is too long (prose with one paragraph a line,
data) is cut at the ends of sentences, or else at words. Passages cover the whole text, in order.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LONGEST = 640
"""Characters of a passage at most."""
ENOUGH = 240
"""Characters from which on a passage ends where a paragraph does."""

DEFINITION = re.compile(
    r"\s*(?:@|(?:export\s+|public\s+|private\s+|protected\s+|static\s+|async\s+|pub(?:\([a-z]+\))?\s+|unsafe\s+|abstract\s+"
    r"|final\s+|default\s+|inline\s+|extern\s+)*(?:def|class|fn|func|function|impl|struct|enum|trait|interface|module"
    r"|namespace|type|sub|proc|defmodule|defp?|fun|macro|template)\b)"
)
HEADING = re.compile(r"#{1,6} +\S")
NO_HEADING = re.compile(r"(?!)")
"""Of files in which such a line is a comment."""
_COMMENTED = re.compile(
    r"\.(?:py|pyi|sh|bash|zsh|rb|pl|r|jl|ya?ml|toml|cfg|ini|conf|mk|cmake|exs?|tcl|nim|gitignore)$|(?:Make|Docker)file$",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?;。！？])\s+|(?<=[。！？])")
_MOST_TITLE = 120


@dataclass(frozen=True)
class Passage:
    """Characters `start` to `end` (not included) of a text, and what stands over them: headings, definitions."""

    start: int
    end: int
    title: str = ""


def line_edges(text: str) -> list[int]:
    """Where each line begins, and the end of the text. A newline ends a line, nothing else does."""
    edges = [0, *(match.end() for match in re.finditer("\n", text))]
    return edges if edges[-1] == len(text) and len(edges) > 1 else [*edges, len(text)]


def heading_of(path: str) -> re.Pattern[str]:
    """What a heading looks like in the file at `path`."""
    return NO_HEADING if _COMMENTED.search(path) else HEADING


def passages(text: str, heading: re.Pattern[str] = HEADING) -> list[Passage]:
    """All passages of `text` that hold more than white space."""
    edges = line_edges(text)
    lines = [text[a:b] for a, b in itertools.pairwise(edges)]
    titles = _titles(lines, heading)
    made = []
    for first, after in _groups(lines, heading):
        for start, end in _within(text, edges[first], edges[after]):
            if text[start:end].strip():
                made.append(Passage(start, end, titles[first]))
    return made


def _groups(lines: Sequence[str], heading: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Lines that belong together, as half-open ranges."""
    first, size = 0, 0
    for number, line in enumerate(lines):
        if number > first and (size + len(line) > LONGEST or _begins(lines, number, size, heading)):
            yield first, number
            first, size = number, 0
        size += len(line)
    if lines:
        yield first, len(lines)


def _begins(lines: Sequence[str], number: int, size: int, heading: re.Pattern[str]) -> bool:
    """Whether a passage should begin with this line, when the one before has `size` characters."""
    line, before = lines[number], lines[number - 1]
    if not line.strip():
        return False
    if heading.match(line):
        return True
    if DEFINITION.match(line) and not before.lstrip().startswith("@"):
        return size >= ENOUGH // 2 or not before.strip()
    return not before.strip() and size >= ENOUGH


def _within(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The range, in parts that are not too long."""
    while end - start > LONGEST:
        part = text[start : start + LONGEST]
        ends = [match.end() for match in _SENTENCE.finditer(part)]
        cut = ends[-1] if ends and ends[-1] > ENOUGH else part.rfind(" ") + 1
        cut = cut if cut > ENOUGH else LONGEST
        yield start, start + cut
        start += cut
    yield start, end


def _titles(lines: Sequence[str], heading: re.Pattern[str]) -> list[str]:
    """For each line, the headings or definitions that it stands under, outermost first, itself included."""
    titles: list[str] = []
    open_ones: list[tuple[int, str]] = []
    for line in lines:
        level = _level(line, heading)
        if level is not None:
            open_ones = [one for one in open_ones if one[0] < level]
            open_ones.append((level, line.strip().lstrip("#").strip()[:_MOST_TITLE]))
        titles.append(" / ".join(title for _, title in open_ones[-3:]))
    return titles


def _level(line: str, heading: re.Pattern[str]) -> int | None:
    """How deep a heading or a definition stands; None for any other line."""
    if heading.match(line):
        return len(line) - len(line.lstrip("#"))
    if DEFINITION.match(line) and not line.lstrip().startswith("@"):
        return 10 + len(line) - len(line.lstrip())
    return None
