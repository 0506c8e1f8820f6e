"""Variable tracking, after RULER (section 3.2; docs/evals.md says what differs): one value goes from name to name.

A chain of `HOPS` assignments stands in repeated noise, in order; the question is which names hold the value in the end.
The completion form begins the answer, as RULER's own answer prefix does; it names nothing that stands in the text but
the value, so a model that only copies has nothing to go on from. With several questions, each has a chain of its own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from foveal.evals.material import TEXT_PATH, Documents, Material, mixed
from foveal.evals.scoring import holds_all
from foveal.evals.task import Answer, Asking, Context, Metrics, Question
from foveal.evals.tasks.needles import NOISE
from foveal.evals.words import letters, numbers

HOPS = 4


class VariableTracking(Asking):
    """All names of a chain must be told."""

    name = "vt"
    about = "RULER vt: names that one value was handed on to, in 4 hops"
    metric = "accuracy"

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        names, values = letters(rng, 5), numbers(rng, 5)
        chains = [(next(values), list(itertools.islice(names, HOPS + 1))) for _ in range(count)]
        lines: list[str] = []
        places: list[float] = []
        for value, chain in chains:
            lines += [f"VAR {chain[0]} = {value}\n", *(f"VAR {b} = VAR {a}\n" for a, b in itertools.pairwise(chain))]
            places += sorted(rng.random() for _ in chain)
        noise = [f"{line}\n" for line in itertools.islice(itertools.cycle(NOISE), length)]

        def made(size: int) -> Documents:
            return mixed(TEXT_PATH, noise[:size], lines, places)

        document = made(material.fit(made, length, len(noise)))[0]
        return Context((document,), tuple(_question(document.text, *chain) for chain in chains))

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        return {"accuracy": holds_all(answers[0].text, question.answers)}


def _question(text: str, value: str, chain: list[str]) -> Question:
    ask = f"Which variables of the text above hold the value {value} in the end, directly or through others?"
    return Question(
        ask=f"{ask} Answer with all their names, separated by commas.",
        cues=(f"{ask}\nThe variables that hold the value {value} are: VAR",),
        answers=tuple(chain),
        max_tokens=64,
        stop=("\n",),
        search=value,
        place=text.index(f"VAR {chain[0]} = ") / len(text),
    )
