"""One task in the making: spans planted in code, then questions with their answers, cut to an exact length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from foveal.errors import FovealError
from foveal.train.data import SHORTEST, Composer, DataError, IntArray, Sample


class Scribe:
    """Text to token ids and back, by the run's tokenizer; another process opens it anew."""

    def __init__(self, tokenizer: Path) -> None:
        from tokenizers import Tokenizer

        self._path, self._tokenizer = tokenizer, Tokenizer.from_file(str(tokenizer))

    def __reduce__(self) -> tuple[type[Scribe], tuple[Path]]:
        return type(self), (self._path,)

    def ids(self, text: str) -> list[int]:
        """The tokens of `text`, nothing added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))


_MISSES = 10_000
"""Random places in a row without a fragment after which a store is given up."""


@dataclass(frozen=True)
class Weights:
    """What tokens weigh in the loss: those that are asked for, and those of the context. Questions weigh nothing."""

    answer: float
    text: float


@dataclass(frozen=True)
class Piece:
    """Tokens in a row; `asked`: they are an answer."""

    ids: list[int]
    asked: bool = False


class TaskError(FovealError, ValueError):
    """No such task can be made of this text at this length; another kind may."""

    code = "invalid_request"


@dataclass
class Draft:
    """`spans` are planted in the context, in this order, at line starts; `questions` follow it."""

    rng: np.random.Generator
    scribe: Scribe
    composer: Composer
    length: int
    spans: list[list[int]] = field(default_factory=list)
    questions: list[Piece] = field(default_factory=list)
    filler: list[int] | None = None
    """The code around the spans; None: fragments of the store, as much as there is room for."""

    def plant(self, *parts: str) -> None:
        """A span, its parts tokenised one by one (so that an answer has the same tokens wherever it stands)."""
        self.spans.append([token for part in parts for token in self.scribe.ids(part)])

    def ask(self, text: str) -> None:
        """The words of a question."""
        self.questions.append(Piece(self.scribe.ids(text)))

    def answer(self, text: str) -> None:
        """What is asked for."""
        self.questions.append(Piece(self.scribe.ids(text), asked=True))

    @property
    def room(self) -> int:
        """Tokens left for the context."""
        return self.length + 1 - sum(len(p.ids) for p in self.questions)

    def shuffle(self) -> None:
        """Plant in a random order."""
        order = self.rng.permutation(len(self.spans))
        self.spans = [self.spans[i] for i in order]

    def finished(self, weights: Weights) -> Sample:
        """The document. Raises `TaskError` when it has no room."""
        planted = sum(map(len, self.spans))
        if self.room - planted < 16:
            raise TaskError(f"{planted} planted tokens and {len(self.questions)} questions do not fit {self.length}")
        context = self._context(self.room - planted)
        tokens = [*context, *(token for piece in self.questions for token in piece.ids)]
        asked = [False] * len(context) + [piece.asked for piece in self.questions for _ in piece.ids]
        weigh = [weights.text] * len(context) + [
            weights.answer * piece.asked for piece in self.questions for _ in piece.ids
        ]
        ids = torch.tensor(tokens, dtype=torch.int64)
        return Sample(
            tokens=ids[:-1],
            targets=ids[1:].clone(),
            weights=torch.tensor(weigh[1:], dtype=torch.float32),
            is_recall=torch.tensor(asked[1:], dtype=torch.bool),
        )

    def _context(self, room: int) -> list[int]:
        filler = self.filler[:room] if self.filler is not None else code(self.composer, self.rng, room)
        if len(filler) != room:
            raise TaskError("the text is shorter than the context")
        ends = self.composer.table.line_end[np.array(filler)]
        starts = np.concatenate([[0], np.flatnonzero(ends[:-1]) + 1])
        places = np.sort(self.rng.choice(starts, size=len(self.spans), replace=len(starts) < len(self.spans)))
        made, done = [], 0
        for place, span in zip(places, self.spans, strict=True):
            made += [*filler[done:place], *span]
            done = int(place)
        return made + filler[done:]


def code(composer: Composer, rng: np.random.Generator, length: int, longest: int = 600) -> list[int]:
    """`length` tokens of code: fragments of many files, each from the start of a line. Raises `DataError` when the
    store has next to none: no other task would find more."""
    parts: list[int] = []
    missed = 0
    while len(parts) < length:
        if missed == _MISSES:
            raise DataError(
                f"token store {composer.store.base} has hardly any fragments of {SHORTEST} tokens that begin a line: "
                "too little for generated tasks; give foveal tokenize longer files, or set tasks.share=0"
            )
        size = int(rng.integers(64, longest + 1))
        fragment: IntArray = composer.store.fragment(
            int(rng.integers(len(composer.store))), size, composer.table.line_end
        )
        missed += 1
        if len(fragment) >= SHORTEST:
            parts += fragment.tolist()
            missed = 0
    return parts[:length]
