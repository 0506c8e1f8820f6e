"""Which tasks a run mixes in, and how many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foveal.train.data import Composer, DataError, Sample
from foveal.train.tasks import lookup, needles
from foveal.train.tasks.draft import Draft, Scribe, TaskError, Weights

KINDS: Mapping[str, Callable[[Draft], None]] = {
    "recall": lookup.recall,
    "key_value": needles.key_value,
    "multi_key": needles.multi_key,
    "multi_value": needles.multi_value,
    "multi_query": needles.multi_query,
    "variable_tracking": needles.variable_tracking,
    "ith_ask": needles.ith_ask,
    "where_defined": lookup.where_defined,
    "signature": lookup.signature,
    "constant": lookup.constant,
    "which_file": lookup.which_file,
}
"""The kinds of tasks, by name."""

_TRIES = 24


@dataclass(frozen=True)
class TaskMix:
    """`share` of the documents are generated tasks; `mix` gives the kinds' relative shares (empty: all alike). An
    answer's tokens weigh `answer_weight` in the loss, the context's `text_weight`, a question's nothing."""

    share: float = 0.0
    mix: Mapping[str, float] = field(default_factory=dict)
    answer_weight: float = 2.0
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        unknown = sorted(self.mix.keys() - KINDS.keys())
        if unknown:
            raise DataError(f"tasks.mix has unknown kind(s) {unknown}; there are {', '.join(KINDS)}")
        if (
            not 0 <= self.share <= 1
            or any(v < 0 for v in self.mix.values())
            or (self.mix and not any(self.mix.values()))
        ):
            raise DataError("tasks.share must be from 0 to 1, and the shares in tasks.mix not below 0 nor all 0")


class Mixture:
    """Documents of a run: composed ones, and generated tasks among them."""

    def __init__(self, composer: Composer, tasks: TaskMix, tokenizer: Path, *, seed: int = 0) -> None:
        self.composer, self.tasks, self.seed = composer, tasks, seed
        self.scribe = Scribe(tokenizer)
        shares = dict(tasks.mix) or dict.fromkeys(KINDS, 1.0)
        self.kinds = list(shares)
        self.chances = np.array([shares[kind] for kind in self.kinds]) / sum(shares.values())

    def sample(self, step: int, length: int, index: int = 0) -> Sample:
        """Document number `index` of `step`, `length` tokens (at least 64)."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step, index, 2])))
        if rng.random() >= self.tasks.share:
            return self.composer.sample(step, length, index)
        for _ in range(_TRIES):
            try:
                return self.task(str(rng.choice(self.kinds, p=self.chances)), rng, length)
            except TaskError:
                continue
        return self.composer.sample(step, length, index)

    def task(self, kind: str, rng: np.random.Generator, length: int) -> Sample:
        """A task of one kind. Raises `TaskError` when the drawn text does not yield one at this length."""
        draft = Draft(rng, self.scribe, self.composer, length)
        KINDS[kind](draft)
        return draft.finished(Weights(self.tasks.answer_weight, self.tasks.text_weight))
