"""Where an answer came from: from attention masses to file and lines.

Attention is read as a measure over the source. A CSA layer chooses between entries of 4 tokens and the raw window in
one softmax, so its masses say where each generated token looked. They are summed over heads and CSA layers, each mass
spread evenly over the tokens it covers (4 for an entry, 1 in the window). The unit is a *cell*, the four tokens of a
CSA entry. An HCA entry covers 128 tokens and names no line; by the same even spreading it adds 4/128 of its share of
what HCA looked at to the cells that CSA named (of the share, not of the mass: where CSA leaves nearly all to its sink,
as after a short cue, HCA's masses are larger by any factor and would decide alone). Left out is what says nothing about
the source: sliding layers (they can see only the last tokens, whatever the answer), the raw window of HCA layers, and
mass on the cue and on generated text. What attention looked at is then held against the text: a cell supports a
generated token only if that token stands in it, and the more, the more of the text before agrees
(`TokenOrigin.supporting`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.cache.contract import LayerTrace
from foveal.config import CSA_RATIO, HCA_RATIO
from foveal.formats import Array


@dataclass(frozen=True)
class Place:
    """A line of a source, from 1. `outdated`: it stood in an earlier version of the file and is no longer there."""

    path: str
    line: int
    outdated: bool = False


Locate = Callable[[int], Place | None]
"""Token index in the source -> its place, or None where no file stands (a header, a separator)."""

CELL_TOKENS = CSA_RATIO
CONTEXT_TOKENS = 32
"""Tokens before a generated one that are compared with those before its cells."""
MERGE_LINES = 3
"""Cited lines of a file at most this far apart are one citation."""
MIN_SHARE = 0.05
"""Citations with a smaller share are noise and are left out."""
UNHELD = 1 / (1 + CONTEXT_TOKENS)
"""Weight of a token that stands in none of the cells it looked at: as if nothing before it agreed either."""
TOP_CELLS = 4
"""Cells kept for each generated token."""


@dataclass(frozen=True)
class Citation:
    """Lines `first_line` to `last_line` (from 1, inclusive) of `path`; `share` of the attention on the source.

    `outdated`: these are lines of an earlier version of the file, which are no longer in it. Shares of all citations of
    an answer sum to at most 1.
    """

    path: str
    first_line: int
    last_line: int
    share: float
    outdated: bool = False

    def __str__(self) -> str:
        lines = f"{self.first_line}-{self.last_line}" if self.last_line > self.first_line else f"{self.first_line}"
        return f"{self.path}:{lines} ({self.share:.0%}{', earlier version' if self.outdated else ''})"


@dataclass(frozen=True)
class TokenOrigin:
    """Where one generated token looked: `cells` (start token of each cell, mass), heaviest first; `mass` is the mass on
    the whole source, summed over layers and heads."""

    cells: tuple[tuple[int, float], ...]
    mass: float

    @property
    def start(self) -> int | None:
        """First token of the heaviest cell, or None when the token looked at no source."""
        return self.cells[0][0] if self.cells else None

    def supporting(self, token: int, before: Array, source: Array) -> TokenOrigin:
        """Only the cells in which `token` stands, if there are any, weighed by how much of the text `before` it (token
        ids, oldest first) stands before it there too (`source`: the memory's tokens).

        Heads that look for other continuations of the same context carry other tokens: they are no evidence for this
        one. And of two places where it stands, the one whose context agrees is the one it was taken from. Every token
        has one vote: its masses are first divided by their sum, so that how sharply a token looked (which differs by
        orders of magnitude between the first tokens after a cue and later ones) does not decide for the others.
        """
        held = []
        looked = sum(mass for _, mass in self.cells) or 1.0
        for start, mass in self.cells:
            places = start + np.flatnonzero(source[start : start + CELL_TOKENS] == token)
            if len(places):
                agreement = max(_agreement(before, source[: int(place)]) for place in places)
                held.append((start, mass / looked * agreement))
        cells = tuple(sorted(held, key=lambda cell: -cell[1]))
        return TokenOrigin(cells or tuple((start, mass / looked * UNHELD) for start, mass in self.cells), self.mass)


def _agreement(before: Array, source: Array) -> float:
    """Share of the last tokens of `before` that stand at the same distance from the end of `source`; above 0."""
    size = min(len(before), len(source))
    same = int((before[len(before) - size :] == source[len(source) - size :]).sum()) if size else 0
    return (1 + same) / (1 + len(before))


def origin_of(
    traces: Iterable[LayerTrace[Array]], position: int, source_tokens: int, top: int = TOP_CELLS
) -> TokenOrigin:
    """Where the row at `position` looked, by the traces of all layers, within the first `source_tokens` tokens."""
    cells = np.zeros(-(-source_tokens // CELL_TOKENS))
    region = np.zeros(-(-source_tokens // HCA_RATIO))
    for trace in traces:
        if trace.ratio == CSA_RATIO:
            window = trace.window_mass
            first = position - len(window) + 1
            _add(cells, np.arange(first, position + 1) // CELL_TOKENS, window[: max(0, source_tokens - first)])
            _add(cells, trace.entries, trace.entry_mass)
        elif trace.ratio == HCA_RATIO:
            _add(region, trace.entries, trace.entry_mass)
    total = float(cells.sum() + region.sum())
    named = np.flatnonzero(cells)
    around = region / max(region.sum(), 1e-300) * cells.sum() * (CELL_TOKENS / HCA_RATIO)
    scores = cells[named] + around[named // (HCA_RATIO // CELL_TOKENS)]
    order = np.argsort(-scores, kind="stable")[:top]
    return TokenOrigin(
        tuple((int(named[i]) * CELL_TOKENS, float(scores[i])) for i in order),
        total,
    )


def _add(into: Array, places: Array, mass: Array) -> None:
    """Add `mass` at `places`, as far as they lie inside; `mass` may be cut shorter than `places`."""
    places = places[: len(mass)]
    inside = places < len(into)
    np.add.at(into, places[inside], mass[inside].astype(np.float64))


def cite(origins: Sequence[TokenOrigin], locate: Locate, source_tokens: int, limit: int = 5) -> tuple[Citation, ...]:
    """The citations of an answer: the cells of all its tokens, as lines, near ones merged, largest share first."""
    lines: dict[tuple[str, bool], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for origin in origins:
        for start, mass in origin.cells:
            covered = range(start, min(start + CELL_TOKENS, source_tokens))
            for token in covered:
                place = locate(token)
                if place is not None:
                    lines[place.path, place.outdated][place.line] += mass / len(covered)
    total = sum(sum(masses.values()) for masses in lines.values())
    if not total:
        return ()
    found = [
        Citation(path, *_trim(group), share, outdated)
        for (path, outdated), masses in lines.items()
        for group in _groups(masses)
        if (share := sum(group.values()) / total) >= MIN_SHARE
    ]
    return tuple(sorted(found, key=lambda c: (-c.share, c.path, c.first_line))[:limit])


def _groups(masses: dict[int, float]) -> list[dict[int, float]]:
    groups: list[dict[int, float]] = []
    for line in sorted(masses):
        if not groups or line - max(groups[-1]) > MERGE_LINES:
            groups.append({})
        groups[-1][line] = masses[line]
    return groups


def _trim(group: dict[int, float]) -> tuple[int, int]:
    """First and last line that hold at least 2 % of the group's mass (or half of what one line holds at most, where it
    is spread over many): stray looks do not stretch a citation."""
    enough = min(0.02 * sum(group.values()), 0.5 * max(group.values()))
    held = [line for line, mass in group.items() if mass >= enough]
    return min(held), max(held)
