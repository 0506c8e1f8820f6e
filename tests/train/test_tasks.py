"""Generated tasks: exact lengths, answers that stand in the text, losses on answers only, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import foveal
from foveal.train.data import Composer, DataError, Recipe, Sample, TokenStore, TokenTable
from foveal.train.storing import tokenize
from foveal.train.tasks import KINDS, Mixture, TaskMix
from foveal.train.tasks.draft import Scribe, TaskError

TOKENIZER = Path(foveal.__file__).parent / "weights" / "nano" / "tokenizer.json"
PACKAGE = Path(foveal.__file__).parent / "train"


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    base = tmp_path_factory.mktemp("store") / "code"
    tokenize([PACKAGE], base, TOKENIZER)
    return Composer(TokenStore(base), TokenTable.from_tokenizer(TOKENIZER), Recipe(), seed=1)


def made(composer: Composer, kind: str, count: int, length: int = 700) -> list[Sample]:
    """`count` tasks of a kind, the drawn texts that yield none left out."""
    mixture, found = Mixture(composer, TaskMix(share=1.0), TOKENIZER, seed=3), []
    for number in range(200):
        try:
            found.append(mixture.task(kind, np.random.default_rng(number), length))
        except TaskError:
            continue
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} tasks of kind {kind} in 200 tries")


def answers(sample: Sample) -> list[list[int]]:
    """The runs of asked-for tokens."""
    runs: list[list[int]] = [[]]
    for target, asked in zip(sample.targets.tolist(), sample.is_recall.tolist(), strict=True):
        if asked:
            runs[-1].append(target)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_stands_in_the_text(composer: Composer, kind: str) -> None:
    scribe = Scribe(TOKENIZER)
    for sample in made(composer, kind, 4):
        assert len(sample.tokens) == len(sample.targets) == len(sample.weights) == 700
        assert torch.equal(sample.tokens[1:], sample.targets[:-1])
        first = int(sample.is_recall.nonzero()[0])
        context = scribe.text(sample.tokens[: first + 1].tolist())
        found = answers(sample)
        assert found
        for answer in found:
            assert scribe.text(answer).strip() in context, "the answer is in what stood before the first answer"
        assert set(sample.weights[sample.is_recall].tolist()) == {2.0}
        assert set(sample.weights[~sample.is_recall].tolist()) <= {0.0, 1.0}
        question = sample.weights[first - 3 : first]
        assert not bool(question[~sample.is_recall[first - 3 : first]].any()), "a question weighs nothing"


@pytest.mark.parametrize("kind", ["key_value", "multi_key", "recall"])
def test_answers_stand_anywhere(composer: Composer, kind: str) -> None:
    """Over many tasks the place of the answer spreads over the context."""
    places = []
    for sample in made(composer, kind, 24, 512):
        tokens, (answer, *_) = sample.tokens.tolist(), answers(sample)
        size = len(answer)
        first = int(sample.is_recall.nonzero()[0])
        places.append(next(i for i in range(first) if tokens[i : i + size] == answer) / 512)
    assert min(places) < 0.25 and max(places) > 0.6


def test_the_ith_of_identical_asks(composer: Composer) -> None:
    scribe = Scribe(TOKENIZER)
    for sample in made(composer, "ith_ask", 6):
        text = scribe.text(sample.tokens.tolist())
        question = text[text.rindex("\nuser: repeat the ") :]
        ordinal, request = question.removeprefix("\nuser: repeat the ").split("\n")[0].split(" reply to: ")
        number = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"].index(ordinal)
        parts = text.split(f"\nuser: {request}\nreply: ")
        assert len(parts) >= 3, "the same ask stands there more than once"
        assert parts[number + 1].startswith(scribe.text(answers(sample)[0]))


def test_the_same_every_time_and_in_shares(composer: Composer) -> None:
    mix = TaskMix(share=0.5, mix={"key_value": 3, "recall": 1})
    one, other = (Mixture(composer, mix, TOKENIZER, seed=5) for _ in range(2))
    tasks = 0
    for index in range(40):
        sample = one.sample(7, 256, index)
        assert torch.equal(sample.tokens, other.sample(7, 256, index).tokens)
        tasks += not sample.sections
    assert 10 <= tasks <= 30


def test_bad_mixes_are_refused() -> None:
    with pytest.raises(DataError, match="unknown kind"):
        TaskMix(mix={"riddle": 1})
    with pytest.raises(DataError, match="share"):
        TaskMix(share=2)
