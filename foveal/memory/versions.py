"""Which version of a file a token belongs to, and where its line is now.

Nothing is stored for it. Of the times a path was read the last one is what holds; the map says where each begins and
the tokens what it said. A line of an earlier version that is still in the file is that line of the present one,
whatever its number was; one that is not is said to be outdated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from foveal.memory.citations import Place
from foveal.sources import SourceMap, follow_lines
from foveal.text import Tokenizer


@dataclass(frozen=True)
class Piece:
    """One time a path was read: tokens `first` to `after` (not included). `removal`: all it says is that it is gone."""

    path: str
    first: int
    after: int
    removal: bool


def pieces(places: SourceMap) -> Iterator[Piece]:
    """What was read, in order."""
    for number, (path, first, after) in enumerate(places.documents):
        yield Piece(path, first, after, len(places.line_starts(number)) == 1)


def latest_pieces(places: SourceMap) -> dict[str, Piece]:
    """The last piece of each path, in the order in which they stand."""
    latest: dict[str, Piece] = {}
    for piece in pieces(places):
        latest.pop(piece.path, None)
        latest[piece.path] = piece
    return latest


def outdated_tokens(places: SourceMap) -> int:
    """Tokens of earlier versions, of files that are gone, and of the lines that say so."""
    return places.tokens - sum(
        piece.after - piece.first for piece in latest_pieces(places).values() if not piece.removal
    )


TokenRange = Callable[[int, int], npt.NDArray[np.int32]]
"""The tokens of a memory from one to before another, int32."""


class Versions:
    """Where the lines of `places` are now. The tokens that these map come with each question."""

    def __init__(self, places: SourceMap, tokenizer: Tokenizer) -> None:
        self._places, self._tokenizer = places, tokenizer
        self._size = places.tokens
        self._pieces = list(pieces(places))
        self._latest = {piece.path: number for number, piece in enumerate(self._pieces)}
        self._followed: dict[int, npt.NDArray[np.int32]] = {}

    def fits(self, places: SourceMap) -> bool:
        """Whether these are (still) the versions of `places`."""
        return places is self._places and places.tokens == self._size

    def place(self, token: int, tokens: TokenRange) -> Place | None:
        """The line in which token number `token` begins; None in a header or a note."""
        line = self._places.locate(token).line
        number = self._places.document_at(token)
        path = self._pieces[number].path
        if not line or self._latest[path] == number:
            return Place(path, line) if line else None
        now = int(self._follow(number, tokens)[line - 1])
        return Place(path, now or line, outdated=not now)

    def _follow(self, number: int, tokens: TokenRange) -> npt.NDArray[np.int32]:
        """For each line of an earlier piece the line it is now, or 0."""
        if number not in self._followed:
            latest = self._latest[self._pieces[number].path]
            self._followed[number] = follow_lines(self._lines(number, tokens), self._lines(latest, tokens))
        return self._followed[number]

    def _lines(self, number: int, tokens: TokenRange) -> list[str]:
        """The lines of a piece, header and note left out."""
        piece, starts = self._pieces[number], self._places.line_starts(number)
        text = self._tokenizer.decode(tokens(piece.first, piece.after).tolist())
        edges = [*starts[1:].tolist(), max(len(text), int(starts[-1]))]
        return [text[a:b] for a, b in pairwise(edges)]
