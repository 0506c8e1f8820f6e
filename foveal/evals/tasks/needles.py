"""Needles in a haystack, after RULER (Hsieh et al. 2024, section 3.1; docs/evals.md says what differs).

A needle is the sentence ``One of the special magic numbers for KEY is: VALUE.`` on a line of its own. The completion
form of a question repeats that sentence up to the value. RULER asks one question of each text; when several share a
text (`count` > 1), it holds as many needles as they need, so "single" is then one needle asked for among several: the
results say how many texts there were.

    single_1    repeated noise      word -> number     multikey_1  source, 4 keys        word -> number
    single_2    lines of source     word -> number     multikey_2  nothing but needles   word -> number
    single_3    lines of source     word -> UUID       multikey_3  nothing but needles   UUID -> UUID
    multivalue  source, 4 values for the key           multiquery  source, 4 keys asked for at once
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from foveal.evals.material import TEXT_PATH, Documents, Material, mixed
from foveal.evals.scoring import holds_all
from foveal.evals.task import Answer, Asking, Context, Metrics, Question, Where, cited
from foveal.evals.words import key_words, numbers, uuids
from foveal.sources import Document

NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
"""RULER's noise, repeated for as long as needed."""
MAX_TOKENS = {"numbers": 24, "uuids": 64}


@dataclass(frozen=True)
class Shape:
    """One of RULER's settings: what the hay is ("noise", "source" or "needles"), kinds of keys and values, least number
    of keys in a text, values of a key, keys asked for at once."""

    hay: str
    keys: str = "words"
    values: str = "numbers"
    least_keys: int = 1
    values_each: int = 1
    asked_at_once: int = 1


SHAPES = {
    "single_1": Shape("noise"),
    "single_2": Shape("source"),
    "single_3": Shape("source", values="uuids"),
    "multikey_1": Shape("source", least_keys=4),
    "multikey_2": Shape("needles"),
    "multikey_3": Shape("needles", keys="uuids", values="uuids"),
    "multivalue": Shape("source", values_each=4),
    "multiquery": Shape("source", least_keys=4, asked_at_once=4),
}


def sentence(kind: str, key: str, value: str = "") -> str:
    """The needle, or its beginning up to the value."""
    begun = f"One of the special magic {kind} for {key} is:"
    return f"{begun} {value}." if value else begun


class Needles(Asking):
    """All of RULER's needle tasks; which one, `shape` says."""

    metric = "accuracy"

    def __init__(self, name: str, shape: Shape) -> None:
        self.name = name  # type: ignore[misc]
        self.about = f"RULER {name}: {shape.hay}, {shape.keys} -> {shape.values}"  # type: ignore[misc]
        self.shape = shape

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """Needles at random places, none nearer to its neighbours than chance has it; questions ask for random ones."""
        if self.shape.hay == "source":
            return material.filled(
                lambda filler: self._in(filler, material, length, count, rng), rng, avoid=("special magic",)
            )
        noise = [f"{line}\n" for line in itertools.islice(itertools.cycle(NOISE), length)]
        return self._in(noise, material, length, count, rng)

    def _in(self, filler: Sequence[str], material: Material, length: int, count: int, rng: random.Random) -> Context:
        """`filler` is left alone where the hay is needles."""
        shape = self.shape
        needed = max(shape.least_keys, count * shape.asked_at_once)
        keys, values = _keys(shape, rng), _values(shape, rng)

        if shape.hay == "needles":
            needles: list[tuple[str, str]] = []

            def only_needles(lines: int) -> Documents:
                while len(needles) < lines:
                    needles.append((next(keys), next(values)))
                return (Document(TEXT_PATH, _lines(shape, needles[:lines])),)

            size = material.fit(only_needles, length, length)
            document = only_needles(size)[0]
            chosen = rng.sample(needles[:size], min(count, size))
        else:
            chosen = [(key, value) for key in itertools.islice(keys, needed) for value in _several(values, shape)]
            places = [rng.random() for _ in chosen]
            inserted = [sentence(shape.values, *pair) + "\n" for pair in chosen]

            def in_filler(lines: int) -> Documents:
                return mixed(TEXT_PATH, filler[:lines], inserted, places)

            document = in_filler(material.fit(in_filler, length, len(filler)))[0]
        asked = _grouped(chosen, shape, count)
        return Context((document,), tuple(_question(shape, document, pairs) for pairs in asked))

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        """RULER's: the share of the values that stand in the answer. With a cue for each key, each in its own."""
        if len(answers) == len(question.answers):
            found = fmean(holds_all(a.text, (value,)) for a, value in zip(answers, question.answers, strict=True))
        else:
            found = holds_all("\n".join(answer.text for answer in answers), question.answers)
        return {"accuracy": found, **cited(question, answers)}


def _keys(shape: Shape, rng: random.Random) -> Iterator[str]:
    return key_words(rng) if shape.keys == "words" else uuids(rng)


def _values(shape: Shape, rng: random.Random) -> Iterator[str]:
    return numbers(rng) if shape.values == "numbers" else uuids(rng)


def _several(values: Iterator[str], shape: Shape) -> list[str]:
    return list(itertools.islice(values, shape.values_each))


def _lines(shape: Shape, needles: Sequence[tuple[str, str]]) -> str:
    return "".join(sentence(shape.values, *pair) + "\n" for pair in needles)


def _grouped(pairs: Sequence[tuple[str, str]], shape: Shape, count: int) -> list[list[tuple[str, str]]]:
    """The needles that each question asks for."""
    each = shape.values_each * shape.asked_at_once
    return [list(pairs[i : i + each]) for i in range(0, min(count * each, len(pairs) - each + 1), each)]


def _question(shape: Shape, document: Document, pairs: Sequence[tuple[str, str]]) -> Question:
    keys = list(dict.fromkeys(key for key, _ in pairs))
    wanted = [document.text.index(sentence(shape.values, *pair)) for pair in pairs]
    lines = [document.text.count("\n", 0, at) + 1 for at in wanted]
    listed = ", ".join(keys)
    # Where a key has several values, any of their lines is a right citation of the first; only one cue is asked.
    places = tuple(Where(TEXT_PATH, line, line) for line in lines) if len(keys) == len(pairs) else ()
    kind = shape.values if len(pairs) > 1 else shape.values.removesuffix("s")
    verb = "are" if len(pairs) > 1 else "is"
    return Question(
        ask=f"The text above mentions special magic {shape.values}. What {verb} the special magic {kind} for {listed}? "
        f"Answer with the {kind} only.",
        cues=tuple(sentence(shape.values, key) for key in keys),
        answers=tuple(value for _, value in pairs),
        max_tokens=MAX_TOKENS[shape.values],
        places=places,
        stop=("\n",),
        search=listed,
        place=wanted[0] / len(document.text),
    )


NEEDLES = tuple(Needles(name, shape) for name, shape in SHAPES.items())
