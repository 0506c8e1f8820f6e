"""What a student learns from: rows most of which cannot be continued well without what lies beyond the raw window.

Repeats of an earlier passage, key-value lists asked in another order, made-up passages with questions after other
text, and plain text. What a step reads follows from its number and the seed alone, so a run goes on as if it had never
stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.text.tokenizer import Tokenizer
from foveal.train.distill.passages import CRAFTS, FIRST_NAMES, LAST_NAMES, THINGS, TOWNS, Fact, notes, story
from foveal.train.distill.settings import SHORTEST_ROW
from foveal.train.settings import SettingsError

_FAR = 192
"""A row's last place that is taught lies here or later: nearer ones need nothing but the raw window."""

_SHORTEST = 224
"""A repeat or a text has so many tokens at least."""
_QUESTIONS = 10
"""About one text: what lies before them is read once for all."""

KINDS = ("repeat", "list", "questions", "notes", "text")
_SHARES = (22, 24, 26, 12, 16)
"""Of repeats, lists, questions about a passage, about notes between other text, and plain text."""
_SIZES = (0.25, 0.35, 0.35, 0.5, 0.75, 1.0)
"""How long rows are, in parts of the longest: long ones are rarer, for they cost more."""


@dataclass(frozen=True)
class Row:
    """Tokens [T], and the places whose next token is taught [n]."""

    kind: str
    tokens: Tensor
    places: Tensor


@dataclass(frozen=True)
class Marks:
    """The control tokens of a chat: what opens a turn, and what closes it (text, as the chat template writes them)."""

    opens: str
    closes: str


class RowMaker:
    """Makes the row of every step, at most `length` tokens long. Raises `SettingsError` for too few tokens."""

    def __init__(
        self, tokenizer: Tokenizer, texts: Sequence[str], begin: int, marks: Marks, *, length: int, seed: int
    ) -> None:
        self.tokenizer, self.begin, self.marks = tokenizer, begin, marks
        self.length, self.seed, self.texts = length, seed, list(texts)
        self.stream = [token for text in texts for token in (begin, *tokenizer.encode(text))]
        if length < SHORTEST_ROW:
            raise SettingsError(f"the source sees {length} tokens; rows that teach packed entries need {SHORTEST_ROW}")
        if len(self.stream) <= length:
            raise SettingsError(f"the text has {len(self.stream):,} tokens, and rows have up to {length:,}: name more")

    def row(self, step: int) -> Row:
        """The row of `step`."""
        draw = random.Random(f"{self.seed} {step}")
        kinds: list[Callable[[random.Random], Row]] = [
            self._repeat, self._list, self._questions, self._notes, self._text,
        ]  # fmt: skip
        while True:
            row = draw.choices(kinds, _SHARES)[0](draw)
            if len(row.tokens) <= self.length and int(row.places[-1]) >= _FAR:
                return row

    def _some(self, draw: random.Random, count: int) -> list[int]:
        start = draw.randrange(len(self.stream) - count)
        return self.stream[start : start + count]

    def _size(self, draw: random.Random) -> int:
        return max(_SHORTEST, int(self.length * draw.choice(_SIZES)))

    def _repeat(self, draw: random.Random) -> Row:
        """Text with a passage of it again at the end."""
        size = self._size(draw)
        again = draw.randrange(size // 8, size // 3)
        tokens = [self.begin, *self._some(draw, size - again - 1)]
        start = draw.randrange(1, len(tokens) - again)
        tokens += tokens[start : start + again]
        return _made("repeat", tokens, range(size - again + 2, size - 1))

    def _text(self, draw: random.Random) -> Row:
        size = self._size(draw)
        places = sorted(draw.sample(range(128, size - 1), min(256, size - 129)))
        return _made("text", [self.begin, *self._some(draw, size - 1)], places)

    def _filler(self, draw: random.Random, most: int) -> str:
        if most < 2:  # the row is short
            return ""
        count = draw.choice((0, draw.randrange(1, most), draw.randrange(most // 2, most)))
        return self.tokenizer.decode(self._some(draw, count)).strip() if count else ""

    def _list(self, draw: random.Random) -> Row:
        count = draw.randrange(6, 40)
        keys = _keys(draw, count)
        numbers = [str(draw.randrange(1000, 9999)) for _ in keys]
        pool = draw.choice((TOWNS, FIRST_NAMES, LAST_NAMES, CRAFTS + THINGS, numbers))
        values = [draw.choice(pool) for _ in keys]
        told = "\n".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
        filler = self._filler(draw, self.length - 24 * count) if 24 * count < self.length - 64 else ""
        tokens = [self.begin, *self.tokenizer.encode("\n\n".join(part for part in (told, filler) if part) + "\n\n")]
        places: list[int] = []
        for number in draw.sample(range(count), min(count, 16)):
            tokens += self.tokenizer.encode(f"{keys[number]}:")
            self._answer(tokens, places, f" {values[number]}", "\n")
        return _made("list", tokens, places)

    def _questions(self, draw: random.Random) -> Row:
        facts = story(draw)
        filler = self._filler(draw, self.length - 700)
        told = " ".join(sentence for sentence, _ in facts)
        parts = (draw.choice(("Read this text.", "Here is a story.", "Remember this.")), told, filler)
        return self._asked(draw, "questions", [part for part in parts if part], facts)

    def _notes(self, draw: random.Random) -> Row:
        """Single facts between pieces of other text."""
        facts = notes(draw)
        rest = max(0, self._size(draw) - 60 * len(facts))
        parts = []
        for fact in facts:
            count = draw.randrange(2 * rest // len(facts) + 1)
            parts += [fact[0], self.tokenizer.decode(self._some(draw, count)).strip()]
        return self._asked(draw, "notes", [part for part in parts if part], facts)

    def _asked(self, draw: random.Random, kind: str, parts: Sequence[str], facts: Sequence[Fact]) -> Row:
        """A chat: the parts, then questions about the facts, in the same turn or after it."""
        asked = [question for _, questions in facts for question in questions]
        draw.shuffle(asked)
        opens, closes = self.marks.opens, self.marks.closes
        turn = f"{opens}user\n" + "\n\n".join(parts)
        if draw.random() < 0.4:  # asked in a turn of its own
            turn += f"{closes}\n{opens}assistant\nI have read it.{closes}\n{opens}user\n"
        else:
            turn += "\n\n"
        tokens: list[int] = []
        places: list[int] = []
        for question, beginning, value in asked[:_QUESTIONS]:
            lead = draw.choice(("Answer in one short sentence: ", "Answer from the text: ", ""))
            text = f"{turn}{lead}{question}{closes}\n{opens}assistant\n"
            tokens += self.tokenizer.encode(text, special=True)
            self._answer(tokens, places, f"{beginning} {value}", "")
            tokens += self.tokenizer.encode(f".{closes}\n", special=True)
            turn = f"{opens}user\n"
        return _made(kind, tokens, places)

    def _answer(self, tokens: list[int], places: list[int], answer: str, after: str) -> None:
        """Append an answer; every token of it is taught."""
        ids = self.tokenizer.encode(answer)
        places += range(len(tokens) - 1, len(tokens) + len(ids) - 1)
        tokens += ids + self.tokenizer.encode(after)


def _made(kind: str, tokens: Sequence[int], places: Sequence[int]) -> Row:
    return Row(kind, torch.tensor(tokens), torch.tensor(sorted({*places}), dtype=torch.int64))


def _keys(draw: random.Random, count: int) -> list[str]:
    if draw.random() < 0.5:
        name = draw.choice(("key", "item", "room", "code", "user", "port"))
        return [f"{name} {number}" for number in draw.sample(range(100, 1000), count)]
    both = [(first, last) for first in FIRST_NAMES for last in LAST_NAMES]
    return [f"{first} {last}" for first, last in draw.sample(both, count)]
