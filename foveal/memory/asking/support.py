"""Which of the shown lines an answer rests on.

A model's own marks (``[1]``) count only when that place was shown. Where it set none, and to name the lines inside a
place, the words decide: those of the answer that the question did not already say, found again in what was shown, rare
ones first. An answer none of whose words stand there rests on nothing, and that is said.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from foveal.memory.asking.places import Found
from foveal.memory.asking.words import STOP_WORDS, stems

_MARK = re.compile(r"\[(\d{1,3})\]")
_STUCK = re.compile(r"[\w)\]]+$")
"""What a mark is stuck to."""
ENOUGH = 0.5
"""Share of an answer's own words (by weight) that must stand in a place for the place to hold it."""
MOST_LINES = 3
"""Lines of a place that are cited, unless its words stand further apart."""


@dataclass(frozen=True)
class AnswerCitation:
    """Lines `first_line` to `last_line` (from 1) of `path`, from the place shown as `number`. `marked`: the model named
    the place itself."""

    number: int
    path: str
    first_line: int
    last_line: int
    marked: bool = False

    def __str__(self) -> str:
        lines = f"{self.first_line}-{self.last_line}" if self.last_line > self.first_line else f"{self.first_line}"
        return f"[{self.number}] {self.path}:{lines}"


def citations(answer: str, question: str, places: Sequence[Found]) -> tuple[AnswerCitation, ...]:
    """The lines that `answer` rests on, the best first; none when what was shown does not say it."""
    marks = (mark for mark in _MARK.finditer(answer) if not _quoted(answer, mark, places))
    marked = [number for number in dict.fromkeys(int(mark[1]) for mark in marks) if 1 <= number <= len(places)]
    told = _telling(_MARK.sub(" ", answer), question)
    held = [_held(told, place.text) for place in places]
    best = max(held, default=0.0)
    chosen = [n for n, share in enumerate(held, start=1) if share >= ENOUGH and share >= 0.8 * best]
    numbers = marked or sorted(chosen, key=lambda number: (-held[number - 1], number))[:2]
    return tuple(_cited(number, places[number - 1], told, question, number in marked) for number in numbers)


def _quoted(answer: str, mark: re.Match[str], places: Sequence[Found]) -> bool:
    """Whether what looks like a mark is code of a place, as in ``row[1]``."""
    before = _STUCK.search(answer, 0, mark.start())
    return before is not None and any(before[0] + mark[0] in place.text for place in places)


def closest(question: str, places: Sequence[Found]) -> tuple[AnswerCitation, ...]:
    """The lines of each place that hold most of the question's words: what to look at when an answer rests on none."""
    asked = Counter(word for word in stems(question) if word not in STOP_WORDS)
    return tuple(
        AnswerCitation(number, place.path, place.line(first), place.line(last))
        for number, place in enumerate(places, start=1)
        for first, last in [_lines(place.text, asked)]
    )


def _cited(number: int, place: Found, told: Counter[str], question: str, marked: bool) -> AnswerCitation:
    first, last = _lines(place.text, told or Counter(stems(question)))
    return AnswerCitation(number, place.path, place.line(first), place.line(last), marked)


def _telling(answer: str, question: str) -> Counter[str]:
    """The answer's words that say something and are not the question's; all that say something where none are left."""
    said = [word for word in stems(answer) if word not in STOP_WORDS]
    asked = set(stems(question))
    own = Counter(word for word in said if word not in asked)
    return own or Counter(said)


def _held(told: Counter[str], text: str) -> float:
    """Share of the words that stand in `text`; longer words and numbers weigh more."""
    there = set(stems(text))
    whole = sum(_weight(word) for word in told)
    return sum(_weight(word) for word in told if word in there) / whole if whole else 0.0


def _weight(word: str) -> float:
    return math.log(2 + len(word)) * (1.5 if word[0].isdigit() else 1.0)


def _lines(text: str, told: Counter[str]) -> tuple[int, int]:
    """The lines of `text` (from 0, both included) that hold most of the words within `MOST_LINES`."""
    lines = [set(stems(line)) & told.keys() for line in text.split("\n")]
    best, span = -1.0, (0, 0)
    for first in range(len(lines)):
        for last in range(first, min(first + MOST_LINES, len(lines))):
            held = set().union(*lines[first : last + 1])
            score = sum(_weight(word) for word in held) - 0.25 * (last - first)
            if score > best + 1e-9 and (lines[first] or not held):
                best, span = score, (first, last)
    return span
