"""From the passage that was found to what reads as one: a function, a paragraph, a section, as far as there is room."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

from foveal.memory.asking.passages import DEFINITION, HEADING, Passage, line_edges, passages

MOST_LINES = 120
"""Lines of a definition at most."""


def widened(
    text: str, start: int, end: int, room: int, count: Callable[[str], int], heading: re.Pattern[str] = HEADING
) -> Passage:
    """The widest sensible part of `text` around characters `start` to `end` that takes at most `room` tokens by
    `count`; where even these take more, their beginning, cut at a line or a word. `heading`: what a heading looks
    like."""
    title = next((one.title for one in passages(text, heading) if one.start <= start < one.end), "")
    best = Passage(start, end, title)
    if count(text[start:end]) > room:
        return Passage(start, _cut(text, start, end, room, count), title)
    for first, after in _candidates(text, start, end, heading):
        if count(text[first:after]) > room:
            break
        best = Passage(first, after, title)
    return best


def _candidates(text: str, start: int, end: int, heading: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Wider and wider parts."""
    edges = line_edges(text)
    lines = [text[a:b] for a, b in itertools.pairwise(edges)]
    first = max(number for number, edge in enumerate(edges[:-1]) if edge <= start)
    after = next(number for number, edge in enumerate(edges) if edge >= end)
    paragraph = _paragraph(lines, first, after)
    yield edges[paragraph[0]], edges[paragraph[1]]
    block = _definition(lines, *paragraph)
    if block is not None:
        yield edges[block[0]], edges[block[1]]
        return
    section = _section(lines, *paragraph, heading)
    if section != paragraph:
        yield edges[section[0]], edges[section[1]]


def _paragraph(lines: Sequence[str], first: int, after: int) -> tuple[int, int]:
    """Out to the nearest empty lines."""
    while first and lines[first - 1].strip():
        first -= 1
    while after < len(lines) and lines[after - 1].strip() and lines[after].strip():
        after += 1
    return first, after


def _definition(lines: Sequence[str], first: int, after: int) -> tuple[int, int] | None:
    """The innermost definition that these lines stand in, decorators included."""
    indents = [len(line) - len(line.lstrip()) for line in lines[first:after] if line.strip()]
    inner = min(indents, default=0)
    for top in range(first, max(-1, first - MOST_LINES), -1):
        line = lines[top]
        indent = len(line) - len(line.lstrip())
        inside = indent < inner or (top == first and indent == inner)
        if line.strip() and inside and DEFINITION.match(line) and not line.lstrip().startswith("@"):
            break
    else:
        return None
    bottom = top + 1
    while bottom < len(lines) and (not lines[bottom].strip() or _deeper(lines[bottom], indent)):
        bottom += 1
    while bottom > after and not lines[bottom - 1].strip():
        bottom -= 1
    while top and lines[top - 1].lstrip().startswith("@"):
        top -= 1
    return (min(top, first), max(bottom, after)) if bottom - top <= MOST_LINES else None


def _deeper(line: str, indent: int) -> bool:
    """Whether a line still belongs to a definition at `indent`: it stands deeper, or closes a bracket."""
    own = len(line) - len(line.lstrip())
    return own > indent or (own == indent and line.lstrip()[0] in ")]}")


def _section(lines: Sequence[str], first: int, after: int, heading: re.Pattern[str]) -> tuple[int, int]:
    """From the heading over these lines to the next one."""
    top = first
    while top and not heading.match(lines[top]):
        top -= 1
    bottom = after
    while bottom < len(lines) and not heading.match(lines[bottom]):
        bottom += 1
    return top, bottom


def _cut(text: str, start: int, end: int, room: int, count: Callable[[str], int]) -> int:
    """Where the beginning of a part that fits ends."""
    low, high = start + 1, end
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[start:middle]) <= room:
            low = middle
        else:
            high = middle - 1
    line, word = text.rfind("\n", start, low) + 1, text.rfind(" ", start, low)
    return line if line > start + (low - start) // 2 else word if word > start else low
