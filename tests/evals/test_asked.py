"""Questions in words: what is asked stands far back, answers are scored by their words, all systems can be asked."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from cli_support import write_model
from click.testing import CliRunner
from evals_support import material, write_source

from foveal.cli.main import app
from foveal.evals.errors import EvalError
from foveal.evals.lives import lives, records
from foveal.evals.material import tolerance
from foveal.evals.session import in_words
from foveal.evals.systems.teacher import greedy
from foveal.evals.task import Answer, Context
from foveal.evals.tasks import TASKS, chosen
from foveal.evals.tasks.asked import FIRST_TOLD, IN_WORDS, InWords, normalised
from foveal.memory import Citation

pytestmark = pytest.mark.slow

MATERIAL = material(9)
LENGTH = 12_000


def build(name: str, count: int = 12, seed: int = 0) -> Context:
    task = TASKS[name]
    return task.build(MATERIAL, LENGTH, count, task.dice(seed, LENGTH, 0))


@pytest.mark.parametrize("task", IN_WORDS, ids=lambda task: task.name)
def test_what_is_asked_stands_in_the_first_part_of_the_text_in_the_lines_that_are_said(task: InWords) -> None:
    context = build(task.name)
    text = context.documents[0].text
    assert LENGTH - tolerance(LENGTH) <= MATERIAL.count(context.documents) <= LENGTH
    assert len(context.questions) == 12
    for question in context.questions:
        where = question.places[0]
        lines = "\n".join(text.split("\n")[where.first - 1 : where.last])
        assert lines == question.facts["passage"] and question.place < 0.3
        assert question.answers[0] in " ".join(lines.split())
    assert context == build(task.name) and context != build(task.name, seed=1)


@pytest.mark.parametrize("task", IN_WORDS, ids=lambda task: task.name)
def test_a_text_too_short_for_its_questions_is_told(task: InWords) -> None:
    told = 0
    for count in (7, 42, 70, 112, 168):
        try:
            built = task.build(MATERIAL, 4_000, count, task.dice(0, 4_000, 0))
        except EvalError:
            told += 1
        else:
            assert len(built.questions) == count and all(one.place <= 0.2 for one in built.questions)
    assert 0 < told < 5


def test_a_question_that_finds_no_place_counts_as_not_shown_and_not_cited() -> None:
    question = build("story").questions[0]
    found, unasked = (Answer("x", citations=those, shown=those) for those in ((), None))
    scores = TASKS["story"].score(MATERIAL, question, [found])
    assert scores["shown"] == scores["cited"] == 0.0
    assert not {"shown", "cited"} & {*TASKS["story"].score(MATERIAL, question, [unasked])}


def test_a_conversation_tells_of_people_from_the_fifth_turn_on() -> None:
    context = build("turns")
    turns = context.documents[0].text.split("\n\n")[:-1]
    assert len(turns) == context.questions[0].facts["turns"] and len(turns) > 50
    told = [number for number, turn in enumerate(turns, start=1) if "Let me tell you" in turn]
    assert told == [FIRST_TOLD, FIRST_TOLD + 1]
    assert all(turn.startswith("User: ") and "\nAssistant: " in turn for turn in turns)


def test_people_and_places_are_all_different_and_every_question_names_its_own() -> None:
    dice = random.Random(3)
    people = [life for life, _ in zip(lives(dice), range(300), strict=False)]
    assert len({life.name for life in people}) == 300
    for life in people:
        assert len(life.asked) == 7 and life.name in " ".join(life.passage.split())
        for asked in life.asked:
            assert life.name in asked.question and asked.answer not in asked.wrong
            assert f" {normalised(asked.answer)} " in f" {normalised(life.passage)} "
            assert asked.answer.lower() not in asked.question.lower()
    lines = [record.line for record, _ in zip(records(dice), range(200), strict=False)]
    assert len(set(lines)) == 200


def test_answers_are_scored_by_their_words() -> None:
    task = IN_WORDS[0]
    question = build("story").questions[0]
    right, wrong = question.answers[0], question.facts["wrong"]

    def score(text: str, **more: object) -> dict[str, float]:
        return task.score(MATERIAL, question, [Answer(text, chat=True, **more)])  # type: ignore[arg-type]

    assert score(f"It is the {right.upper()}!") == {"accuracy": 1.0, "strict": 1.0}
    assert score(f"It is {right}s or so.")["accuracy"] == 0.0
    assert score("I do not know.")["accuracy"] == 0.0
    if wrong:
        assert score(f"{right} or {wrong[0]}") == {"accuracy": 1.0, "strict": 0.0}
    where = question.places[0]
    here, elsewhere = Citation(where.path, where.first, where.first, 1.0), Citation("other.txt", 1, 1, 1.0)
    assert score("x", citations=(here,), shown=(elsewhere, here)) == {
        "accuracy": 0.0, "strict": 0.0, "cited": 1.0, "shown": 1.0
    }  # fmt: skip
    assert score("x", citations=(), shown=(elsewhere,))["cited"] == 0.0


def test_tasks_in_words_are_run_by_themselves() -> None:
    assert in_words(chosen("asked")) and not in_words(chosen("ruler")) and not in_words(chosen("all"))
    with pytest.raises(EvalError, match="by themselves"):
        in_words(chosen("story,recall"))


def test_a_draft_changes_nothing_of_what_the_teacher_says() -> None:
    dice = random.Random(1)
    following = {n: dice.randrange(50) for n in range(50)}

    def likeliest(ids: list[int]) -> list[int]:
        return [following[(token * 7 + place) % 50] for place, token in enumerate(ids)]

    def plain(ids: list[int], most: int, ends: set[int]) -> list[int]:
        said: list[int] = []
        while len(said) < most:
            token = likeliest([*ids, *said])[-1]
            if token in ends:
                break
            said.append(token)
        return said

    for ends in (set(), {following[3]}, {following[3], following[9]}):
        expected = plain([1, 2, 3], 12, ends)
        for wrong in (0, 2, 5):

            def draft(ids: list[int], most: int, wrong: int = wrong) -> list[int]:
                return [*plain(list(ids), min(most, 5), set())[: 5 - wrong], *[0] * min(wrong, most)]

            assert greedy([1, 2, 3], 12, ends, likeliest, draft) == expected  # type: ignore[arg-type]


def test_every_system_is_asked_and_the_same_command_goes_on(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", seed=1)
    source = write_source(tmp_path / "source", 9)
    command = ["eval", "story,facts", "--length", "2k", "--samples", "2", "--contexts", "1", "--threads", "1"]
    command += ["--model", str(model), "--with", str(model), "--source", str(source), "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, [*command, "--json"])
    assert first.exit_code == 0, first.output
    rows = {(row["task"], row["system"]): row for row in json.loads(first.stdout)["results"]}
    systems = {"zoom", "search", "window", "ceiling", "entries"}
    assert {system for _, system in rows} == systems and all(row["n"] == 2 for row in rows.values())
    assert rows["facts", "zoom"]["shown"] == 1.0 and "shown" not in rows["facts", "ceiling"]
    about = json.loads(first.stdout)
    assert about["with"]["name"] == "model" and about["zoom"] == 3 and about["teacher"] is None
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout)["results"] == json.loads(first.stdout)["results"]
    assert json.loads(again.stdout)["read"]["tokens"] == 0
    wrong = CliRunner().invoke(app, [*command, "--systems", "zoom,nothing"])
    assert wrong.exit_code == 1 and "no system 'nothing' here" in wrong.stderr
    nowhere = CliRunner().invoke(app, [*command, "--teacher", str(tmp_path / "nowhere")])
    assert nowhere.exit_code == 1 and "nowhere" in nowhere.stderr and "asking" not in nowhere.stderr
    unasked = CliRunner().invoke(app, [*command, "--teacher", str(tmp_path / "nowhere"), "--systems", "ceiling"])
    assert unasked.exit_code == 0, "a teacher that is not asked need not be there"
    others = ["eval", "lookup", "--length", "2k", "--samples", "1", "--model", str(model), "--source", str(source)]
    refused = CliRunner().invoke(app, [*others, "--systems", "zoom"])
    assert refused.exit_code == 1 and "no system 'zoom' here; there are memory, search" in refused.stderr
