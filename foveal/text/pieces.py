"""Pieces of a prompt to token ids: control tokens by their name, text as plain text, long texts only once.

A chat comes back with every request, a little longer each time. Control tokens cut a prompt into pieces whose ids do
not depend on each other, so the ids of a piece that was seen before are kept, and only what is new is tokenised.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foveal.text.tokenizer import Tokenizer

MAX_KEPT_CHARACTERS = 16 * 2**20
"""Text whose ids are kept, in characters. A character takes about two bytes: itself, and its share of an id."""
_WORTHWHILE = 64
"""Shorter pieces are tokenised again."""


@dataclass(frozen=True)
class Piece:
    """A piece of a prompt: plain text, or the one control token that `text` names."""

    text: str
    control: bool = False


class PieceEncoder:
    """Pieces to ids. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, max_characters: int = MAX_KEPT_CHARACTERS) -> None:
        self._tokenizer = tokenizer
        self._max = max_characters
        self._kept: OrderedDict[str, array[int]] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def encode(self, pieces: Iterable[Piece]) -> tuple[list[int], list[int]]:
        """The ids of all pieces, and how many stand before each piece (and, last, how many there are)."""
        ids: list[int] = []
        starts: list[int] = []
        for piece in pieces:
            starts.append(len(ids))
            if piece.control:
                ids.append(self._tokenizer.control_id(piece.text))
            else:
                ids += self.plain(piece.text)
        return ids, [*starts, len(ids)]

    def plain(self, text: str) -> Sequence[int]:
        """The ids of a plain text."""
        if len(text) < _WORTHWHILE:
            return self._tokenizer.encode(text)
        with self._lock:
            ids = self._kept.get(text)
            if ids is not None:
                self._kept.move_to_end(text)
                return ids
        ids = array("i", self._tokenizer.encode(text))
        with self._lock:
            if text not in self._kept:
                self._kept[text] = ids
                self._characters += len(text)
            while self._characters > self._max:
                self._characters -= len(self._kept.popitem(last=False)[0])
        return ids
