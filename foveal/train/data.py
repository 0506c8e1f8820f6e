"""Training sequences: fragments of many files, then verbatim repeats of what stood earlier.

A sequence is composed, not cut out. *Fresh* chunks (code from many files, and random tokens that no language model can
guess) are mixed with *recall sections*, each of which repeats a span of the fresh material verbatim. A model can only
predict a section by finding, from its first tokens (the cue), where it stood before. Spans whose continuation is not
determined yet by what the section has shown (the same line stands in several places) are found exactly and are not
counted as recall, so the loss never asks for a guess; look-alikes (a copied line with another continuation) are planted
on purpose, so that a short look-back does not suffice.

Everything is a function of (seed, step, index): resuming needs no saved data state.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.text import Tokenizer, TokenizerError
from foveal.text.specials import PAD

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_NEWLINE = "\u010a"
"""The newline byte in the printable alphabet of byte-level BPE."""


SHORTEST = 16
"""A store needs a document of this many tokens: fragments of fewer are not what a sequence can be made of."""


class DataError(FovealError, ValueError):
    """A token store or tokenizer cannot be used; the message says which and why."""

    code = "invalid_request"


@dataclass(frozen=True)
class TokenTable:
    """What the composer must know of a vocabulary: `line_end` [V] (the token's last byte is a newline), `ordinary` ids
    (everything but special tokens), the id of a lone newline and that of the blank (pad) token, and the tokenizer's
    `fingerprint` (None: not known)."""

    line_end: BoolArray
    ordinary: IntArray
    newline: int
    blank: int
    fingerprint: str | None = None

    @classmethod
    def from_tokenizer(cls, path: Path | str) -> Self:
        """From a ``tokenizer.json`` with byte-level BPE. Raises `DataError` when it is not there or not of
        that sort, or lacks a newline or pad token."""
        import tokenizers

        if not Path(path).is_file():
            raise DataError(f"no tokenizer at {path}; 'tokenizer' must name a tokenizer.json")
        try:
            fingerprint = Tokenizer.from_file(path).fingerprint()
        except TokenizerError as error:
            raise DataError(str(error)) from error
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        added = set(tokenizer.get_added_tokens_decoder())
        newline = vocabulary.get(_NEWLINE)
        if newline is None:
            raise DataError(f"{path} has no newline token; the composer needs a byte-level BPE vocabulary")
        size = max(vocabulary.values()) + 1
        line_end = np.zeros(size, dtype=np.bool_)
        for token, index in vocabulary.items():
            line_end[index] = index not in added and token.endswith(_NEWLINE)
        ordinary = np.array(sorted(set(vocabulary.values()) - added), dtype=np.int64)
        blank = vocabulary.get(PAD)
        if blank is None:
            raise DataError(f"{path} has no {PAD} token; recall sections begin with it")
        return cls(line_end=line_end, ordinary=ordinary, newline=newline, blank=blank, fingerprint=fingerprint)


_AGAIN = "make it again with foveal tokenize --force"
_READ = 1 << 22
"""Tokens of a store in memory at a time."""


def description(base: Path) -> dict[str, Any] | None:
    """What the ``NAME.json`` of a token store says; None when there is none. Raises `ValueError` when it is damaged."""
    path = base.with_name(base.name + ".json")
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no description")
    return found


class TokenStore:
    """Documents as one memory-mapped array: ``NAME.bin`` (tokens) and ``NAME.idx.npy`` (document offsets); tokens are
    uint16, unless a ``NAME.json`` says ``"dtype": "uint32"`` (vocabularies of more than 65,536). There may also be the
    number of `tokens`, and the fingerprint of the `tokenizer` that made them.

    The offsets are the first token of each document, ascending from 0; a last one equal to the length may follow.
    """

    def __init__(self, base: Path | str) -> None:
        """`base` is the path without ``.bin``. Raises `DataError` when a file is missing or damaged, or they do not fit
        together."""
        self.base = base = Path(base)
        tokens, index = base.with_name(base.name + ".bin"), base.with_name(base.name + ".idx.npy")
        for path in (tokens, index):
            if not path.is_file():
                raise DataError(f"token store {base} lacks {path.name}; make it with foveal tokenize")
        try:
            about = description(base) or {"dtype": "uint16"}
            self.tokens: npt.NDArray[Any] = np.memmap(tokens, dtype=np.dtype(about["dtype"]), mode="r")
            offsets = np.load(index, allow_pickle=False).astype(np.int64).reshape(-1)
        except (ValueError, TypeError, KeyError, EOFError) as error:
            raise DataError(f"token store {base} is damaged ({error}); {_AGAIN}") from error
        self.tokenizer: str | None = about.get("tokenizer")
        if len(self.tokens) != about.get("tokens", len(self.tokens)):
            raise DataError(
                f"token store {base} is damaged ({len(self.tokens)} tokens in place of {about['tokens']}); {_AGAIN}"
            )
        if len(offsets) and offsets[-1] == len(self.tokens):
            offsets = offsets[:-1]
        if not len(offsets) or offsets[0] != 0 or np.any(np.diff(offsets) < 0) or offsets[-1] >= len(self.tokens):
            raise DataError(f"{index} does not fit {tokens.name} ({len(self.tokens)} tokens); {_AGAIN}")
        self.starts: IntArray = offsets

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        """Another process opens the files itself."""
        return type(self), (self.base,)

    def __len__(self) -> int:
        """Tokens in all documents."""
        return len(self.tokens)

    @property
    def documents(self) -> int:
        return len(self.starts)

    def identity(self) -> str:
        """What tells this store's content from another's: sizes, and a hash over documents and tokens (of a large
        store, over 64 parts of a MiB that are spread over it)."""
        known = hashlib.sha256(self.starts.tobytes())
        part = (1 << 20) // self.tokens.itemsize
        for start in np.unique(
            np.linspace(0, max(0, len(self) - part), min(64, -(-len(self) // part)), dtype=np.int64)
        ):
            known.update(self.tokens[start : start + part].tobytes())
        return f"{len(self):,} tokens in {self.documents:,} documents, {known.hexdigest()[:16]}"

    def largest(self) -> int:
        """The largest token id."""
        return max(int(self.tokens[start : start + _READ].max()) for start in range(0, len(self), _READ))

    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(np.diff(self.starts, append=len(self)).max())

    def end(self, document: int) -> int:
        """Offset one past the last token of `document`."""
        return int(self.starts[document + 1]) if document + 1 < len(self.starts) else len(self.tokens)

    def document(self, index: int) -> IntArray:
        """All tokens of one document."""
        return self.tokens[int(self.starts[index]) : self.end(index)].astype(np.int64)

    def fragment(self, position: int, length: int, line_end: BoolArray, search: int = 256) -> IntArray:
        """Up to `length` tokens from the first line start at or after `position`, not past the document's end.

        Empty when no line starts within `search` tokens.
        """
        document = int(np.searchsorted(self.starts, position, side="right")) - 1
        begin, end = int(self.starts[document]), self.end(document)
        if position > begin:
            before = self.tokens[position - 1 : min(position - 1 + search, end)]
            ends = np.flatnonzero(line_end[before])
            if not len(ends):
                return np.empty(0, dtype=np.int64)
            position += int(ends[0])
        return self.tokens[position : min(position + length, end)].astype(np.int64)


@dataclass(frozen=True)
class Recipe:
    """How sequences are composed. Lengths are tokens, inclusive ranges; shares are fractions of the sequence or, where
    said, chances."""

    chunk: tuple[int, int] = (64, 400)
    span: tuple[int, int] = (24, 160)
    cue: tuple[int, int] = (8, 12)
    recall_share: float = 0.6
    """Tokens in recall sections, cues included."""
    random_share: float = 0.25
    """Chance that a fresh chunk is random tokens."""
    lookalike_share: float = 0.3
    """Chance that a fresh code chunk contains a copy of a few earlier tokens that then goes on differently."""
    lookalike: tuple[int, int] = (3, 24)
    line_start_share: float = 0.7
    """Chance that a section's span begins at a line start (anywhere otherwise)."""
    far: int = 128
    """Spans should begin further back than this: the raw window sees what is nearer."""
    far_share: float = 0.9
    newline_share: float = 0.9
    """Chance that a section is preceded by a line end; the rest begins in the middle of a line."""
    blank_share: float = 0.0
    """Chance that a section is preceded by blanks, as a recall's cue is: then nothing else is in the cue's context."""
    blanks: int = 36
    wrong_share: float = 0.0
    """Share of a section's tokens after the cue that are shown wrong (a random one of the sequence) while the targets
    stay right: generation has to find back after a mistake of its own."""
    recall_weight: float = 2.0
    switch_weight: float = 0.0
    """Weight of the first token of every piece but the first: nothing before it says that the text changes."""

    def __post_init__(self) -> None:
        for name in ("chunk", "span", "cue", "lookalike"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise DataError(f"setting 'data.{name}' is [{low}, {high}]; it must be [least, most], from 1 up")
        for name in ("recall", "random", "lookalike", "line_start", "far", "newline", "blank", "wrong"):
            share = getattr(self, f"{name}_share")
            if not 0 <= share <= 1:
                raise DataError(f"setting 'data.{name}_share' is {share}; it must be from 0 to 1")
        for name in ("far", "blanks", "recall_weight", "switch_weight"):
            if not getattr(self, name) >= 0:
                raise DataError(f"setting 'data.{name}' is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True)
class Section:
    """One recall section: ``sequence[start : start + length]`` repeats ``sequence[source : source + length]``."""

    start: int
    source: int
    length: int
    cue: int


@dataclass(frozen=True)
class Sample:
    """One training sequence of n tokens. `targets` are the next tokens; `weights` (fp32) and `is_recall` (bool) belong
    to the targets. `sections` index the n + 1 tokens of ``tokens + targets[-1:]`` (wrong ones put right)."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    is_recall: Tensor
    sections: tuple[Section, ...] = field(default=())


class Composer:
    """Makes the sequences of a run from a token store, deterministically."""

    def __init__(self, store: TokenStore, table: TokenTable, recipe: Recipe | None = None, *, seed: int = 0) -> None:
        """Raises `DataError` when the store was made with another tokenizer, or all its documents are too short."""
        self.store, self.table, self.recipe, self.seed = store, table, recipe or Recipe(), seed
        if store.tokenizer is not None and table.fingerprint not in (None, store.tokenizer):
            raise DataError(
                f"token store {store.base} was made with another tokenizer than the run's; make it again with foveal "
                "tokenize --tokenizer, or set 'tokenizer' to that one"
            )
        if store.largest() >= len(table.line_end):
            raise DataError(
                f"token store {store.base} holds ids beyond the tokenizer's vocabulary: they do not belong together"
            )
        if store.longest() < SHORTEST:
            raise DataError(
                f"no document in token store {store.base} has {SHORTEST} tokens: too little to compose sequences of; "
                "give foveal tokenize longer files"
            )

    def frequencies(self, vocab_size: int) -> Tensor:
        """How often each token id stands in the store [V], fp32."""
        return torch.from_numpy(np.bincount(self.store.tokens, minlength=vocab_size)[:vocab_size].astype(np.float32))

    def weighing(self, recall_weight: float | None) -> Composer:
        """The same sequences with another weight on recall; None keeps the recipe's."""
        other = copy.copy(self)
        if recall_weight is not None:
            other.recipe = dataclasses.replace(self.recipe, recall_weight=recall_weight)
        return other

    def sample(self, step: int, length: int, index: int = 0) -> Sample:
        """The sequence number `index` of `step`, `length` tokens (at least 64) long."""
        if length < 64:
            raise DataError(f"sequence length {length} is too short to hold a recall section; use at least 64")
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step, index])))
        return _Draft(self, rng, length).compose()


class _Draft:
    """One sequence in the making: n + 1 tokens and what is known of each."""

    def __init__(self, composer: Composer, rng: np.random.Generator, length: int) -> None:
        self.store, self.table, self.recipe = composer.store, composer.table, composer.recipe
        self.rng, self.size, self.n = rng, length + 1, 0
        self.tokens: IntArray = np.zeros(self.size, dtype=np.int64)
        self.wrong: dict[int, int] = {}
        """Places of tokens that are shown wrong, and as what."""
        self.weights = np.ones(self.size, dtype=np.float32)
        self.recall: BoolArray = np.zeros(self.size, dtype=np.bool_)
        self.run: IntArray = np.full(self.size, -1, dtype=np.int64)
        """Number of the unbroken stretch of fresh text a token belongs to; -1 in recall sections and separators."""
        self.runs = 0
        self.sections: list[Section] = []
        self.planted: list[int] = []
        """Where look-alikes stand and where they were taken from."""

    def compose(self) -> Sample:
        recalled = 0
        opening = max(min(192, self.size // 3), int(self.rng.uniform(0.1, 0.35) * self.size))
        while self.n < opening:
            self._add_fresh(opening - self.n)
        while self.n < self.size:
            before = self.n
            if self.rng.random() < self._recall_chance(recalled) and self._add_section():
                recalled += self.n - before
            else:
                self._add_fresh(self.size - self.n)
        shown = self.tokens.copy()
        shown[list(self.wrong)] = list(self.wrong.values())
        return Sample(
            tokens=torch.from_numpy(shown[:-1]),
            targets=torch.from_numpy(self.tokens[1:].copy()),
            weights=torch.from_numpy(self.weights[1:].copy()),
            is_recall=torch.from_numpy(self.recall[1:].copy()),
            sections=tuple(self.sections),
        )

    def _recall_chance(self, recalled: int) -> float:
        """Chance of a section that brings the share of recall tokens to the recipe's by the end of the sequence."""
        share = (self.recipe.recall_share * self.size - recalled) / max(1, self.size - self.n)
        if share >= 1 or share <= 0:
            return float(share >= 1)
        fresh = share / np.mean(self.recipe.span), (1 - share) / np.mean(self._chunk_range())
        return float(fresh[0] / sum(fresh))

    def _between(self, bounds: tuple[int, int]) -> int:
        return int(self.rng.integers(bounds[0], bounds[1] + 1))

    def _append(self, tokens: IntArray, run: int) -> None:
        tokens = tokens[: self.size - self.n]
        if not len(tokens):
            return
        if self.n:
            self.weights[self.n] = self.recipe.switch_weight
        self.tokens[self.n : self.n + len(tokens)] = tokens
        self.run[self.n : self.n + len(tokens)] = run
        self.n += len(tokens)

    # ------------------------------------------------------------------ fresh text

    def _chunk_range(self) -> tuple[int, int]:
        low, high = self.recipe.chunk
        high = max(low, min(high, self.size // 3))
        return low, high

    def _add_fresh(self, room: int) -> None:
        length = min(self._between(self._chunk_range()), max(room, 16))
        if self.rng.random() < self.recipe.random_share:
            chunk = self.rng.choice(self.table.ordinary, size=length)
        else:
            chunk = self._code(length)
            if self.rng.random() < self.recipe.lookalike_share:
                chunk = self._plant(chunk)
        if not self.n or self.run[self.n - 1] < 0:
            self.runs += 1
        self._append(chunk, self.runs)

    def _code(self, length: int) -> IntArray:
        """A fragment of at least 32 tokens (or `length`); where such are rare, the longest of 32 that were drawn."""
        longest: IntArray = np.empty(0, dtype=np.int64)
        for _ in range(32):
            position = int(self.rng.integers(len(self.store)))
            chunk = self.store.fragment(position, length, self.table.line_end)
            if len(chunk) >= min(32, length):
                return chunk
            longest = max(longest, chunk, key=len)
        if not len(longest):
            raise DataError(
                f"32 random places in token store {self.store.base} are not near a line's beginning; is it text?"
            )
        return longest

    def _plant(self, chunk: IntArray) -> IntArray:
        """Insert a copy of earlier fresh tokens at a line start of `chunk`: the same words, another continuation."""
        old = np.flatnonzero(self.run[: self.n] > 0)
        starts = np.flatnonzero(self.table.line_end[chunk[:-1]]) + 1
        if not len(old) or not len(starts):
            return chunk
        source = int(self._prefer_line_starts(old))
        copy = self.tokens[source : min(source + self._between(self.recipe.lookalike), self.n)]
        at = int(self.rng.choice(starts))
        self.planted += [source, self.n + at]
        return np.concatenate([chunk[:at], copy, chunk[at:]])

    def _prefer_line_starts(self, positions: IntArray) -> int:
        if self.rng.random() < self.recipe.line_start_share:
            after = positions[positions > 0]
            lines = after[self.table.line_end[self.tokens[after - 1]]]
            if len(lines):
                positions = lines
        return int(self.rng.choice(positions))

    # ------------------------------------------------------------------ recall

    def _add_section(self) -> bool:
        """Repeat an earlier span, if one can be found; False (and nothing added) otherwise."""
        for _ in range(8):
            source = self._choose_source()
            if source is None:
                return False
            length = min(self._between(self.recipe.span), self.size - self.n)
            length = min(length, self._fresh_until(source) - source)
            cue = self._between(self.recipe.cue)
            if length < min(self.recipe.span[0], self.size - self.n):
                continue
            if np.array_equal(self.tokens[max(0, source - 4) : source], self.tokens[max(0, self.n - 4) : self.n]):
                continue
            self._repeat(source, length, cue)
            return True
        return False

    def _choose_source(self) -> int | None:
        fresh = np.flatnonzero(self.run[: self.n] > 0)
        if self.rng.random() < self.recipe.far_share:
            far = fresh[fresh < self.n - self.recipe.far - 1]
            fresh = far if len(far) else fresh
        if not len(fresh):
            return None
        planted = [place for place in self.planted if place < self.n]
        if planted and self.rng.random() < 0.25:
            # Begin a little before a look-alike, so that the section has to copy through it.
            place = int(self.rng.choice(planted)) - self._between((8, 40))
            if place in fresh:
                return place
        return self._prefer_line_starts(fresh)

    def _fresh_until(self, source: int) -> int:
        """End of the unbroken stretch of fresh text that `source` lies in."""
        broken = np.flatnonzero(self.run[source : self.n] != self.run[source])
        return source + int(broken[0]) if len(broken) else self.n

    def _repeat(self, source: int, length: int, cue: int) -> None:
        span = self.tokens[source : source + length].copy()
        if not self.table.line_end[self.tokens[self.n - 1]] and self.rng.random() < self.recipe.newline_share:
            self._append(np.array([self.table.newline]), -1)
        if self.recipe.blank_share and self.rng.random() < self.recipe.blank_share:
            before = self.n
            self._append(np.full(self.recipe.blanks, self.table.blank), -1)
            self.weights[before : self.n] = 0.0
        start = self.n
        span = span[: self.size - start]
        if not len(span):
            return
        asked = np.arange(len(span)) >= cue
        asked &= ~self._ambiguous(span)
        self._append(span, -1)
        if self.recipe.wrong_share:
            for place in start + np.flatnonzero(asked & (self.rng.random(len(span)) < self.recipe.wrong_share)):
                self.wrong[int(place)] = int(self.tokens[self.rng.integers(start)])
        self.recall[start : self.n] = asked
        self.weights[start : self.n][asked] = self.recipe.recall_weight
        self.sections.append(Section(start=start, source=source, length=len(span), cue=cue))

    def _ambiguous(self, span: IntArray) -> BoolArray:
        """[len(span)]: True where the tokens of `span` so far stand in several places that go on differently."""
        result = np.zeros(len(span), dtype=np.bool_)
        places = np.arange(self.n)
        for k, token in enumerate(span):
            places = places[places + k < self.n]
            same = self.tokens[places + k] == token
            result[k] = not same.all()
            places = places[same]
            if len(places) <= 1:
                break
        return result
