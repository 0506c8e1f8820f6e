"""Control strings in text that is to stay text, while a template joins it with control strings of its own.

A breaker, a character that occurs nowhere else, is put into every control string of a text, and where the text's ends
could make one with what stands beside it. After the template's own control strings have been found, the breaker is
taken out again. Everything else in the text is as it was.
"""

from __future__ import annotations

import re

from foveal.text.chat import ChatError
from foveal.text.pieces import Piece
from foveal.text.tokenizer import Tokenizer

_BREAKERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that Unicode keeps for such uses: they stand for nothing."""


class ControlStrings:
    """The control strings of a vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._strips = {name: tokenizer.strips(name) for name in names}
        self._longest = max(map(len, names), default=0)
        self._beginnings = {name[:size] for name in names for size in range(1, len(name))}
        self._endings = {name[size:] for name in names for size in range(1, len(name))}
        self._first, self._last = {name[0] for name in names}, {name[-1] for name in names}

    def search(self, text: str, start: int = 0) -> str | None:
        """The first control string in `text` from `start` on."""
        match = self._pattern.search(text, start)
        return match[0] if match else None

    def broken(self, text: str, breaker: str) -> str:
        """`text` in which no control string is whole, nor can become whole with what stands beside it."""
        text = self._pattern.sub(lambda match: breaker.join(match[0]), text)
        tail, start = text[-self._longest :], text[: self._longest]
        if not self._first.isdisjoint(tail) and any(tail[place:] in self._beginnings for place in range(len(tail))):
            text += breaker
        if not self._last.isdisjoint(start) and any(start[:size] in self._endings for size in range(1, len(start) + 1)):
            text = breaker + text
        return text

    def split(self, text: str, breaker: str = "") -> list[Piece]:
        """The whole control strings and the text between them, the breaker taken out. White space that belongs to a
        control string is gone with it."""
        pieces: list[Piece] = []
        place = 0
        for match in self._pattern.finditer(text):
            strips_left, strips_right = self._strips[match[0]]
            before = text[place : match.start()]
            pieces += [Piece(before.rstrip() if strips_left else before), Piece(match[0], control=True)]
            place = match.end()
            if strips_right:
                place = len(text) - len(text[place:].lstrip())
        pieces.append(Piece(text[place:]))
        mended = [Piece(p.text.replace(breaker, ""), p.control) if breaker else p for p in pieces]
        return [piece for piece in mended if piece.text]


def unused_character(text: str) -> str:
    """A character that `text` does not contain. Raises `ChatError` if it contains all that may be used."""
    found = [letter for letter in _BREAKERS if letter not in text]
    if not found:
        raise ChatError("the conversation contains every one of the characters U+FDD0 to U+FDEF; leave one out")
    return found[0]
