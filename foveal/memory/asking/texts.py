"""The text of a memory's files, as it was read."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foveal.memory.asking.passages import line_edges
from foveal.memory.turn_parts import ANSWER, part_of, without_marks
from foveal.memory.versions import latest_pieces, pieces

if TYPE_CHECKING:
    from foveal.memory.memory import Memory

MOST_KEPT = 32
"""Texts that are kept for the next question."""


@dataclass(frozen=True)
class FileText:
    """A file's latest version in a memory. `text` is without the header line; line n (from 1) begins at character
    ``edges[n - 1]``, and `edges` ends with the text's length. `document` is its number in the source map."""

    path: str
    document: int
    text: str
    edges: npt.NDArray[np.int64]

    def line_at(self, character: int) -> int:
        """The line (from 1) that a character is in."""
        return max(1, min(int(np.searchsorted(self.edges, character, side="right")), len(self.edges) - 1))

    def lines(self, first: int, last: int) -> str:
        """Lines `first` to `last` (from 1, both included)."""
        return self.text[self.edges[first - 1] : self.edges[min(last, len(self.edges) - 1)]]


class MemoryTexts:
    """The texts of one memory. Not safe to use from several threads."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._documents = memory, memory.places.documents
        latest = latest_pieces(memory.places)
        self._turns_from = turns_from = memory.length if memory.chat is None else memory.chat
        found = [
            (number, piece)
            for number, piece in enumerate(pieces(memory.places))
            if latest[piece.path] == piece and not piece.removal
        ]
        self.documents: tuple[int, ...] = tuple(number for number, piece in found if piece.first < turns_from)
        """Numbers of the latest versions in the source map, in reading order; without turns of a conversation."""
        self.turns: tuple[int, ...] = tuple(
            number for number, piece in found if piece.first >= turns_from and part_of(piece.path) != ANSWER
        )
        """Of a conversation: what was said in its turns. Answers that were worded from places are no source of
        others."""
        self._kept: OrderedDict[int, FileText] = OrderedDict()

    def file(self, document: int) -> FileText:
        """The text of a document."""
        if document not in self._kept:
            self._kept[document] = self._read(document)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(document)
        return self._kept[document]

    def _read(self, document: int) -> FileText:
        places, memory = self._memory.places, self._memory
        path, first, after = self._documents[document]
        ids, tokenizer = memory.sequence.token_range(first, after).tolist(), memory.engine.tokenizer
        whole = tokenizer.decode(ids)
        starts = places.line_starts(document)
        begins = int(starts[1]) if len(starts) > 1 else len(whole)
        if first >= self._turns_from:
            text = without_marks(whole[begins:], ids, tokenizer).rstrip()
            return FileText(path, document, text, np.array(line_edges(text)))
        inside = starts[1:][starts[1:] < len(whole)] - begins
        text = whole[begins:]
        edges = np.append(inside.astype(np.int64), len(text)) if len(inside) else np.array([0, len(text)])
        return FileText(path, document, text, edges)
