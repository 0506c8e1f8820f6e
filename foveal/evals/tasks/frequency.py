"""Common and frequent words, after RULER (section 3.3; docs/evals.md says what differs): what must be counted over the
whole text.

Nothing in the text is the answer, so neither a search nor a copy finds it. ``cwe``: a numbered list in which ten words
stand 30 times each and all others 3 times (below 4,096 tokens 6 times and once); name the ten. ``fwe``: words drawn
from a zeta distribution (alpha 2); name the three most frequent, dots aside. A text has one question.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

from foveal.evals.material import TEXT_PATH, Documents, Material
from foveal.evals.scoring import holds_all
from foveal.evals.task import Answer, Asking, Context, Form, Metrics, Question
from foveal.evals.words import coined_words, key_words
from foveal.sources import Document

COMMON = 10
TIMES, TIMES_IN_SHORT = (30, 3), (6, 1)
"""How often a common word stands, and any other; in texts shorter than `SHORT` tokens."""
SHORT = 4096
_CHANGED_BELOW = 4800
"""Tokens below which common words once stood 10 times."""
ALPHA = 2.0
DOTS = "..."


class _Words(Asking):
    metric = "accuracy"

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        return {"accuracy": holds_all(answers[0].text, question.answers)}


class CommonWords(_Words):
    """RULER's cwe."""

    name = "cwe"
    about = "RULER cwe: the ten words that stand most often in a list"

    def version(self, form: Form, length: int) -> int:
        return 2 if length < _CHANGED_BELOW else 1

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        words = key_words(rng)
        common = list(itertools.islice(words, COMMON))
        common_times, other_times = TIMES if length >= SHORT else TIMES_IN_SHORT
        others = list(itertools.islice(words, max(1, length // other_times)))
        shuffle = rng.random()

        def made(size: int) -> Documents:
            every = common * common_times + others[:size] * other_times
            random.Random(shuffle).shuffle(every)
            lines = [f"{number}. {word}\n" for number, word in enumerate(every, start=1)]
            return (Document(TEXT_PATH, "".join(lines)),)

        documents = made(material.fit(made, length, len(others)))
        ask = "What are the ten words that stand most often in the list above?"
        return Context(documents, (_question(ask, tuple(common)),))


class FrequentWords(_Words):
    """RULER's fwe."""

    name = "fwe"
    about = "RULER fwe: the three most frequent coded words"

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        vocabulary = [DOTS, *itertools.islice(coined_words(rng), 2000)]
        weights = [rank**-ALPHA for rank in range(1, len(vocabulary) + 1)]
        drawn = rng.choices(vocabulary, weights, k=length)

        def made(size: int) -> Documents:
            lines = [" ".join(drawn[i : min(i + 12, size)]) + "\n" for i in range(0, size, 12)]
            return (Document(TEXT_PATH, "".join(lines)),)

        size = material.fit(made, length, len(drawn))
        counted = Counter(word for word in drawn[:size] if word != DOTS)
        top = sorted(counted, key=lambda word: (-counted[word], vocabulary.index(word)))[:3]
        ask = "What are the three most frequent words of the coded text above, dots aside?"
        return Context(made(size), (_question(ask, tuple(top)),))


def _question(ask: str, answers: tuple[str, ...]) -> Question:
    return Question(
        ask=f"{ask} Answer with the words only, separated by commas.",
        cues=(f"{ask}\nThe words are: 1.",),
        answers=answers,
        max_tokens=128,
        search=ask,
        place=0.5,
    )
