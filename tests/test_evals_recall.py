"""The recall evaluation: cues that stand once, what follows them, and what counts as right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from cli_support import write_model

from foveal.api import Engine
from foveal.evals.recall import ANSWER_TOKENS, MIN_CUE_TOKENS, choose_cues, evaluate, looking_at, stretch
from foveal.sources import Document


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.open(write_model(tmp_path_factory.mktemp("evals") / "model", seed=1), threads=1)


def documents(count: int = 6, lines: int = 120) -> list[Document]:
    dice = random.Random(5)
    made = []
    for number in range(count):
        body = [f"    value_{dice.randrange(10**6)} = compute({dice.randrange(999)}, flag)" for _ in range(lines)]
        body[10] = body[20] = "    the_same_line = appears(in_every_file, twice)"
        made.append(Document(f"pkg/m{number}.py", "\n".join(body) + "\n"))
    return made


def test_cues_stand_once_and_say_what_follows(engine: Engine) -> None:
    every = documents()
    whole = {d.path: d.text for d in every}
    cues = choose_cues(every, engine.tokenizer, 20, random.Random(1))
    assert len(cues) == 20
    for cue in cues:
        assert sum(text.count(cue.text) for text in whole.values()) == 1
        assert whole[cue.path].splitlines()[cue.line - 1] == cue.text
        assert cue.text + cue.following in whole[cue.path]
        assert len(engine.tokenizer.encode(cue.text)) >= MIN_CUE_TOKENS
        assert len(engine.tokenizer.encode(cue.following)) > ANSWER_TOKENS


def test_a_stretch_is_as_long_as_asked(engine: Engine) -> None:
    chosen = stretch(documents(), engine.tokenizer, 3000, random.Random(2))
    size = sum(len(engine.tokenizer.encode(d.text)) for d in chosen)
    assert 2800 <= size <= 3000


def test_the_same_weights_can_look_at_fewer_entries(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", seed=1)
    with looking_at(str(folder), 3) as other:
        changed = Engine.open(other, threads=1)
        assert changed.config.index_topk == 3
    with looking_at(str(folder), None) as same:
        assert Engine.open(same, threads=1).config.index_topk != 3
    assert not Path(other).exists()


def test_the_whole_evaluation_runs(engine: Engine, tmp_path: Path) -> None:
    for document in documents():
        path = tmp_path / document.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document.text)
    report = evaluate(engine, tmp_path, 2000, contexts=1, cues=2)
    assert len(report.samples) == 2 and report.length == 2000
    for sample in report.samples:
        assert 0 <= sample.token_accuracy <= 1 and len(engine.tokenizer.encode(sample.expected)) <= ANSWER_TOKENS + 1
        assert (sample.token_accuracy == 1) == (sample.first_wrong == ANSWER_TOKENS)
