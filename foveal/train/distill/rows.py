"""What a student learns from: rows most of which cannot be continued well without what lies beyond the raw window.

Repeats of an earlier passage, key-value lists asked in another order, made-up lives with questions after other text,
and plain text. What a step reads follows from its number and the seed alone, so a run goes on as if it had never
stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.text.tokenizer import Tokenizer

_FIRST = (
    "Amara Benedikt Celia Dorian Edith Farid Gwen Harald Ines Jonas Katya Lorenzo Mina Nils Odile Pavel Quentin Rania "
    "Stefan Tova Ulrik Vera Wanda Xavier Yusuf Zelda Arno Bettina Cyril Delia Emil Fiona"
).split()
_LAST = (
    "Abbott Brandt Castillo Dvorak Eklund Ferrari Grant Horvat Ivanov Jansen Keller Lindgren Mercier Nowak Olsen "
    "Pereira Quist Romano Sandoval Tanaka Ueda Vogel Weaver Yilmaz Zimmer"
).split()
_TOWNS = (
    "Antwerp Bergamo Cardiff Dundee Esbjerg Freiburg Granada Helsinki Innsbruck Jena Kiel Lisbon Marburg Naples Oulu "
    "Parma Quimper Rouen Salzburg Tartu Umea Vilnius Warsaw York Zurich Athens Bilbao Cologne Delft Essen"
).split()
_THINGS = "lamps coins masks flutes kites maps knives buttons bottles stamps shells drums".split()
_CRAFTS = "chemistry law botany music physics history medicine logic geology drawing optics".split()
_TRADES = "a baker,a potter,a farmer,a judge,a pilot,a tailor,a mason,a nurse,a printer,a weaver,a diver".split(",")
_COLOURS = "red blue yellow white black orange brown green grey purple".split()
_BEASTS = "dog cat horse parrot goat rabbit donkey tortoise".split()
_PETS = "Pepper Ginger Rusty Luna Toffee Daisy Bandit Olive Pickle Storm Hazel Copper Mango Juniper".split()
_DISHES = "onion soup,plum cake,rye bread,fried fish,lentil stew,apple pie,goat cheese,roast chicken".split(",")

_FAR = 192
"""A row's last place that is taught lies here or later: nearer ones need nothing but the raw window."""

_QUESTIONS = 10
"""About one text: what lies before them is read once for all."""

KINDS = ("repeat", "list", "questions", "notes", "text")
_SHARES = (22, 26, 24, 15, 13)
"""Of repeats, lists, questions about a life, about notes between other text, and plain text."""
_SIZES = (0.25, 0.35, 0.35, 0.5, 0.75, 1.0)
"""How long rows are, in parts of the longest: long ones are rarer, for they cost more."""

Fact = tuple[str, tuple[tuple[str, str, str], ...]]
"""A sentence, and questions about it: the question, how its answer begins, what follows."""


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
    """Makes the row of every step, at most `length` tokens long."""

    def __init__(
        self, tokenizer: Tokenizer, texts: Sequence[str], begin: int, marks: Marks, *, length: int, seed: int
    ) -> None:
        self.tokenizer, self.begin, self.marks = tokenizer, begin, marks
        self.length, self.seed, self.texts = length, seed, list(texts)
        self.stream = [token for text in texts for token in (begin, *tokenizer.encode(text))]

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
        return int(self.length * draw.choice(_SIZES))

    def _repeat(self, draw: random.Random) -> Row:
        tokens, first, _ = self._repeated(draw)
        return _made("repeat", tokens, range(first + 2, len(tokens) - 1))

    def _repeated(self, draw: random.Random) -> tuple[list[int], int, int]:
        """Text with a passage of it again at the end: the tokens, where the copy begins, and where the original."""
        size = self._size(draw)
        again = draw.randrange(size // 8, size // 3)
        tokens = [self.begin, *self._some(draw, size - again - 1)]
        start = draw.randrange(1, len(tokens) - again)
        return tokens + tokens[start : start + again], size - again, start

    def repeat_at(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """A repeat's tokens [T], the places of the copy [n] and of the same tokens in the original [n]."""
        tokens, first, start = self._repeated(random.Random(f"repeat {self.seed} {number}"))
        places = torch.arange(first, len(tokens))
        return torch.tensor(tokens), places, places - first + start

    def _text(self, draw: random.Random) -> Row:
        size = self._size(draw)
        places = sorted(draw.sample(range(128, size - 1), min(256, size - 129)))
        return _made("text", [self.begin, *self._some(draw, size - 1)], places)

    def _filler(self, draw: random.Random, most: int) -> str:
        count = draw.choice((0, draw.randrange(1, most), draw.randrange(most // 2, most)))
        return self.tokenizer.decode(self._some(draw, count)).strip() if count else ""

    def _list(self, draw: random.Random) -> Row:
        count = draw.randrange(6, 40)
        keys = _keys(draw, count)
        pool = draw.choice((_TOWNS, _FIRST, _LAST, _CRAFTS + _THINGS, [str(draw.randrange(1000, 9999)) for _ in keys]))
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
        facts = _life(draw)
        filler = self._filler(draw, self.length - 700)
        parts = (draw.choice(("Read this text.", "Here is a story.", "Remember this.")), _told(facts), filler)
        return self._asked(draw, "questions", [part for part in parts if part], facts)

    def _notes(self, draw: random.Random) -> Row:
        """Single facts between pieces of other text."""
        facts = _notes(draw)
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
    both = [(first, last) for first in _FIRST for last in _LAST]
    return [f"{first} {last}" for first, last in draw.sample(both, count)]


def _told(facts: Sequence[Fact]) -> str:
    return " ".join(sentence for sentence, _ in facts)


def _notes(draw: random.Random) -> list[Fact]:
    """Facts that have nothing to do with each other."""
    name, other, third = draw.sample(_FIRST, 3)
    towns, crafts, things = draw.sample(_TOWNS, 3), draw.sample(_CRAFTS, 2), draw.sample(_THINGS, 3)
    colour, trade, family = draw.choice(_COLOURS), draw.choice(_TRADES), draw.choice(_LAST)
    count, code, hour = draw.randrange(3, 400), draw.randrange(1000, 10000), draw.randrange(1, 24)
    facts: list[Fact] = [
        (
            f"The meeting about {crafts[0]} takes place in {towns[0]}.",
            ((f"Where does the meeting about {crafts[0]} take place?", "The meeting takes place in", towns[0]),),
        ),
        (
            f"{name} keeps the {things[0]} in the {colour} box.",
            ((f"In which box does {name} keep the {things[0]}?", f"{name} keeps the {things[0]} in the", colour),),
        ),
        (
            f"The code of {other}'s door is {code}.",
            ((f"What is the code of {other}'s door?", f"The code of {other}'s door is", str(code)),),
        ),
        (
            f"The {things[1]} cost {count} pounds.",
            ((f"How much did the {things[1]} cost?", f"The {things[1]} cost", f"{count} pounds"),),
        ),
        (
            f"{third} {family} works as {trade} in {towns[1]}.",
            (
                (f"What does {third} work as?", f"{third} works as", trade),
                (f"Where does {third} work?", f"{third} works in", towns[1]),
            ),
        ),
        (
            f"The train to {towns[2]} leaves at {hour}:{draw.randrange(10, 60)}.",
            ((f"Where does the train at {hour} o'clock go?", "It goes to", towns[2]),),
        ),
        (
            f"The book about {crafts[1]} lies under the {things[2]}.",
            ((f"What lies under the {things[2]}?", f"Under the {things[2]} lies the book about", crafts[1]),),
        ),
    ]
    return draw.sample(facts, draw.randrange(3, len(facts) + 1))


def _life(draw: random.Random) -> list[Fact]:
    """A made-up life: a sentence of birth, then others in any order."""
    (name, friend), (family, other) = draw.sample(_FIRST, 2), draw.sample(_LAST, 2)
    she, her = draw.choice((("she", "her"), ("he", "his")))
    towns, trades, colours = draw.sample(_TOWNS, 4), draw.sample(_TRADES, 2), draw.sample(_COLOURS, 2)
    year, count, thing = draw.randrange(1890, 1995), draw.randrange(12, 990), draw.choice(_THINGS)
    beast, pet, craft, dish = draw.choice(_BEASTS), draw.choice(_PETS), draw.choice(_CRAFTS), draw.choice(_DISHES)
    born: Fact = (
        f"{name} {family} was born in {towns[0]} in {year}.",
        (
            (f"Where was {name} born?", f"{name} was born in", towns[0]),
            (f"In which year was {name} born?", f"{name} was born in", str(year)),
            (f"What is the family name of {name}?", f"The family name of {name} is", family),
        ),
    )
    rest: list[Fact] = [
        (
            f"{name}'s mother was {trades[0]}, and {her} father was {trades[1]}.",
            (
                (f"What was the mother of {name}?", f"The mother of {name} was", trades[0]),
                (f"What was {name}'s father?", f"{name}'s father was", trades[1]),
            ),
        ),
        (
            f"At twenty {she} went to {towns[1]} to study {craft}.",
            (
                (f"What did {name} study?", f"{name} studied", craft),
                (f"In which town did {name} study?", f"{name} studied in", towns[1]),
            ),
        ),
        (
            f"A {beast} called {pet} lived with {name} for many years.",
            (
                (f"What was {name}'s {beast} called?", f"{name}'s {beast} was called", pet),
                (f"What kind of animal was {pet}?", f"{pet} was a", beast),
            ),
        ),
        (
            f"The house had a {colours[0]} gate and {colours[1]} walls.",
            (
                ("What colour was the gate?", "The gate was", colours[0]),
                ("What colour were the walls?", "The walls were", colours[1]),
            ),
        ),
        (
            f"{name}'s closest friend, {friend} {other}, often came for dinner.",
            ((f"Who was {name}'s closest friend?", f"{name}'s closest friend was", f"{friend} {other}"),),
        ),
        (f"What {she} liked best was {dish}.", ((f"What did {name} like to eat?", f"{name} liked", dish),)),
        (
            f"Over the years {she} gathered {count} {thing}.",
            (
                (f"What did {name} gather?", f"{name} gathered", thing),
                (f"How many {thing} did {name} have?", f"{name} had", str(count)),
            ),
        ),
        (
            f"In the end everything went to a museum in {towns[2]}.",
            (("In which town is the museum?", "The museum is in", towns[2]),),
        ),
    ]
    draw.shuffle(rest)
    return [born, *rest[: draw.randrange(4, len(rest) + 1)]]
