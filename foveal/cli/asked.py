"""An answer from places, as people read it: its lines, the places that were shown, and what was done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from foveal.cli.output import show_seconds

if TYPE_CHECKING:
    from foveal.memory import Answer, Found

LINES_SHOWN = 6
"""Lines of each place that are shown."""


def place_lines(places: Sequence[Found]) -> Iterator[str]:
    """Each place: where it is, how many tokens it takes, who proposed it, and how it begins."""
    for number, place in enumerate(places, start=1):
        why = ", ".join(f"{name} rank {rank}" for name, rank in place.ranks.items())
        yield f"[{number}] {place}  {place.tokens} tokens ({why})"
        for line in place.text.split("\n")[:LINES_SHOWN]:
            yield f"      {_shown(line)}"


def citation_lines(answer: Answer) -> Iterator[str]:
    """The cited lines as the memory read them; without any, those that are closest to the question."""
    from foveal.memory.asking.support import closest

    cited = answer.citations
    if answer.places and not cited:
        yield ""
        yield "No line that was shown says this. The lines that are closest to the question:"
        cited = closest(answer.question, answer.places)
    for citation in cited:
        yield ""
        yield str(citation)
        shown = answer.places[citation.number - 1].shown(citation.first_line, citation.last_line)
        for number, line in shown[:LINES_SHOWN]:
            yield f"{number:6}  {_shown(line)}"


def step_lines(answer: Answer) -> Iterator[str]:
    """What was done, and what it took."""
    for step in answer.steps:
        yield f"{step.name}: {step.detail}, {step.tokens:,} tokens, {show_seconds(step.seconds)}"


def _shown(line: str) -> str:
    """A line of a source without what would be shown as an escape though it only sets it out."""
    return line.rstrip().expandtabs(4)
