"""The tasks' texts: as long as asked, the same for the same seed, and the answers stand in them once."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from evals_support import documents, material

from foveal.evals.errors import EvalError
from foveal.evals.material import Documents, Material, lines_of, tolerance, whole_text
from foveal.evals.systems import SearchSystem
from foveal.evals.task import Answer, Asking, Context
from foveal.evals.tasks import TASKS, chosen
from foveal.evals.tasks.citations import Citations, dropped
from foveal.evals.tasks.needles import SHAPES, Needles
from foveal.evals.tasks.recall import ANSWER_TOKENS, MIN_CUE_TOKENS, Recall
from foveal.evals.words import coined_words, key_words, letters, numbers, uuids
from foveal.memory import Citation
from foveal.sources import Document

pytestmark = pytest.mark.slow

MATERIAL = material(9)
LENGTH = 3000


def build(name: str, count: int = 3, seed: int = 0, length: int = LENGTH) -> Context:
    task = TASKS[name]
    return task.build(MATERIAL, length, count, task.dice(seed, length, 0))


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_as_long_as_asked_and_the_same_for_the_same_seed(name: str) -> None:
    one, same = build(name), build(name)
    assert one == same and any(build(name, seed=seed).documents != one.documents for seed in (1, 2, 3))
    size = MATERIAL.count(one.documents)
    assert LENGTH - tolerance(LENGTH) <= size <= LENGTH
    assert (name == "perplexity") == (not one.questions) and len(one.questions) <= 3


@pytest.mark.parametrize("shape", SHAPES)
def test_needles_stand_in_the_text_once(shape: str) -> None:
    context = build(shape)
    text = whole_text(context.documents)
    for question in context.questions:
        assert question.cues and question.answers and 0 <= question.place < 1
        for cue in question.cues:
            assert text.count(cue) == SHAPES[shape].values_each
        for value in question.answers:
            assert text.count(value) == 1
    keys = [line.partition(" for ")[2].partition(" is:")[0] for line in text.splitlines() if "special magic" in line]
    assert len(keys) == len(set(keys)) * SHAPES[shape].values_each


@pytest.mark.parametrize("shape", SHAPES)
def test_a_needle_says_in_which_line_it_stands(shape: str) -> None:
    context = build(shape)
    lines = context.documents[0].text.splitlines()
    for question in context.questions:
        for place, value in zip(question.places, question.answers, strict=False):
            assert value in lines[place.first - 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plain_search_finds_every_needle(shape: str) -> None:
    context = build(shape)
    task = TASKS[shape]
    assert isinstance(task, Asking)
    with SearchSystem().reading(context.documents) as reader:
        for question in context.questions:
            answers = reader.ask(question)
            assert task.score(MATERIAL, question, answers)["accuracy"] == 1
            assert task.score(MATERIAL, question, answers).get("citation_accuracy", 1.0) == 1
            wrong = [Answer("no idea", None, ()) for _ in answers]
            assert task.score(MATERIAL, question, wrong)["accuracy"] == 0


def test_single_has_one_needle_when_one_question_is_asked() -> None:
    for name in ("single_1", "single_2", "single_3"):
        assert whole_text(build(name, count=1).documents).count("special magic") == 1
    assert whole_text(build("multikey_1", count=1).documents).count("special magic") == 4


def test_several_values_count_in_part() -> None:
    task = Needles("multivalue", SHAPES["multivalue"])
    question = build("multivalue", count=1).questions[0]
    assert len(question.answers) == 4 and len(question.cues) == 1
    half = Answer(f" {question.answers[1]}, {question.answers[3]}")
    assert task.score(MATERIAL, question, [half]) == {"accuracy": 0.5}


def test_several_keys_count_where_they_were_asked() -> None:
    task = Needles("multiquery", SHAPES["multiquery"])
    question = build("multiquery", count=1).questions[0]
    assert len(question.cues) == 4
    turned = [Answer(question.answers[(n + 1) % 4]) for n in range(4)]
    assert task.score(MATERIAL, question, turned) == {"accuracy": 0.0}
    in_one = [Answer("; ".join(question.answers))]
    assert task.score(MATERIAL, question, in_one) == {"accuracy": 1.0}


def test_cues_stand_once_and_say_what_follows() -> None:
    context = build("recall", count=20, length=6000)
    whole = {d.path: d.text for d in context.documents}
    assert len(context.questions) == 20
    for question in context.questions:
        (cue,), (place,) = question.cues, question.places
        assert sum(text.splitlines().count(cue) for text in whole.values()) == 1
        assert whole[place.path].splitlines()[place.first - 1] == cue
        assert cue + question.expected in whole[place.path]
        # The answer begins with the token in which the cue's end lies.
        assert question.answers[0] in cue + question.expected
        assert len(MATERIAL.tokenizer.encode(cue)) >= MIN_CUE_TOKENS
        assert len(MATERIAL.tokenizer.encode(question.expected)) > ANSWER_TOKENS


def test_recall_is_scored_token_by_token() -> None:
    task, question = Recall(), build("recall").questions[0]
    right = task.score(MATERIAL, question, [Answer(question.expected)])
    assert right == {"token_accuracy": 1.0, "sequence_accuracy": 1.0, "first_wrong": 32.0}
    tokens = list(MATERIAL.tokenizer.encode(question.expected))
    with SearchSystem().reading(build("recall").documents) as reader:
        found = task.score(MATERIAL, question, reader.ask(question))
    assert found["token_accuracy"] == 1.0 and found["citation_accuracy"] == 1.0
    expected = task.score(MATERIAL, question, [Answer("", tuple(tokens[:0]))])
    assert expected["token_accuracy"] == 0.0 and expected["first_wrong"] == 0.0


def test_a_source_that_is_too_short_is_said_to_be() -> None:
    with pytest.raises(EvalError, match="--source"):
        build("recall", length=10**6)
    with pytest.raises(EvalError, match="nothing to read"):
        Material([], MATERIAL.tokenizer)
    with pytest.raises(EvalError, match="no task 'singel_1'"):
        chosen("singel_1")


def test_names_are_all_different() -> None:
    dice = random.Random(3)
    for made in (key_words(dice), numbers(dice), uuids(dice), letters(dice, 5), coined_words(dice)):
        some = [next(made) for _ in range(5000)]
        assert len(set(some)) == 5000
    keys = key_words(dice)
    assert len({next(keys) for _ in range(60_000)}) == 60_000


def test_needles_keep_away_from_text_that_looks_like_them() -> None:
    every = documents()
    every[0] = type(every[0])(every[0].path, "One of the special magic numbers for old-boat is: 7.\n" + every[0].text)
    trap = Material(every, MATERIAL.tokenizer)
    task = TASKS["single_2"]
    for seed in range(4):
        text = whole_text(task.build(trap, LENGTH, 1, task.dice(seed, LENGTH, 0)).documents)
        assert text.count("special magic") == 1


@pytest.mark.parametrize("name", ["lookup", "mrcr_4", "repoqa", "vt", "cwe", "fwe"])
def test_the_right_answer_scores_1_and_a_wrong_one_0(name: str) -> None:
    context, task = build(name), TASKS[name]
    assert isinstance(task, Asking)
    for question in context.questions:
        right = question.expected or ", ".join(question.answers)
        assert task.score(MATERIAL, question, [Answer(right)])[task.metric] == 1
        assert task.score(MATERIAL, question, [Answer("@")])[task.metric] < 0.1


def test_counted_words_are_those_that_stand_most_often() -> None:
    for name, few in (("cwe", 10), ("fwe", 3)):
        context = build(name)
        (question,) = context.questions
        words = [w for w in context.documents[0].text.split() if w[0].isalpha()]
        counts = Counter(words)
        assert len(question.answers) == few
        least = min(counts[word] for word in question.answers)
        assert all(counts[word] <= least for word in counts if word not in question.answers)


def test_a_chain_is_in_order_and_ends_with_the_value() -> None:
    context = build("vt")
    text = context.documents[0].text
    for question in context.questions:
        names = question.answers
        lines = [f"VAR {names[0]} = {question.search}", *(f"VAR {b} = VAR {a}" for a, b in itertools.pairwise(names))]
        places = [text.index(line + "\n") for line in lines]
        assert len(names) == 5 and places == sorted(places) and text.count(f" = {question.search}\n") == 1


def test_identical_asks_have_different_answers() -> None:
    for needles in (2, 4, 8):
        context = build(f"mrcr_{needles}", count=8)
        text = context.documents[0].text
        assert text.count(f"about {context.questions[0].search}\n") == needles
        for question in context.questions:
            assert text.count(question.cues[0] + "\n" + question.expected) == 1
        marked = Answer(f"{question.facts['mark']} {question.expected}", chat=True)
        task = TASKS[f"mrcr_{needles}"]
        assert isinstance(task, Asking)
        assert task.score(MATERIAL, question, [marked])["likeness"] == 1
        assert task.score(MATERIAL, question, [Answer(question.expected, chat=True)])["likeness"] == 0


def test_descriptions_are_not_in_the_text() -> None:
    context = build("repoqa")
    text = whole_text(context.documents)
    for question in context.questions:
        assert question.search not in text and text.count(question.expected) == 1


def test_lines_are_dropped_by_number() -> None:
    text = (Document("a.py", "1\n2\n3\n4\n"), Document("b.py", "1\n"))
    assert dropped(text, {"a.py": {2, 3}, "b.py": {1}}) == (Document("a.py", "1\n4\n"),)


def test_lines_of_very_different_density_still_fill_a_text() -> None:
    tokenizer = MATERIAL.tokenizer
    for seed in range(60):
        dice = random.Random(seed)
        lines: list[str] = []
        while len(lines) < 4000:
            dense = " ".join(f"{dice.getrandbits(40):x}" for _ in range(dice.randrange(2, 8))) + "\n"
            lines += [dense] * dice.randrange(1, 60) + ["x\n"] * dice.randrange(1, 400)
        one = Material([Document("a.txt", "".join(lines))], tokenizer)
        size = one.count(one.stretch(4096, dice))
        assert 4096 - tolerance(4096) <= size <= 4096, seed


def prose(words: str = "abcdefghijklmnopqrstuvwxyz", space: str = " ", size: int = 250) -> Material:
    """One paragraph of so many words a line, far longer than a line of code."""
    dice = random.Random(11)

    def paragraph() -> str:
        return space.join("".join(dice.choices(words, k=dice.randrange(2, 9))) for _ in range(size)) + "."

    texts = ["\n\n".join(paragraph() for _ in range(12)) + "\n" for _ in range(6)]
    return Material([Document(f"book/{n}.txt", text) for n, text in enumerate(texts)], MATERIAL.tokenizer)


@pytest.mark.parametrize("name", ["single_2", "multikey_1", "recall", "perplexity", "mrcr_2"])
def test_prose_of_one_paragraph_a_line_makes_texts(name: str) -> None:
    task = TASKS[name]
    # Nano's tokenizer spells out Chinese: 4,096 tokens are too few characters for a cue far from the end.
    for texts in (
        [prose()] if name == "recall" else (prose(), prose("\u4e00\u4eba\u5927\u5c71\u6c34\u706b\u65e5\u6708", "", 60))
    ):
        for seed in range(4):
            context = task.build(texts, 4096, 2, task.dice(seed, 4096, 0))
            assert 4000 <= texts.count(context.documents) <= 4096
            assert len(context.questions) == (0 if name == "perplexity" else 2)


def test_long_lines_are_only_taken_where_there_is_nothing_else() -> None:
    lines = "".join(f"line {n} of many short ones\n" for n in range(2000))
    both = Material([Document("a.txt", lines + "long " * 100 + "\n")], MATERIAL.tokenizer)
    assert both.filled(lambda filler: filler, random.Random(0)) == lines.splitlines(keepends=True)


def test_only_newlines_end_lines() -> None:
    text = "one\x0ctwo\u2028\x0b\x85\x1c\nthree\r\n\nfour"
    assert lines_of(text) == ["one\x0ctwo\u2028\x0b\x85\x1c", "three\r", "", "four"]
    assert "".join(lines_of(text, ends=True)) == text and len(lines_of(text + "\n")) == 4 and lines_of("") == []


def test_form_feeds_do_not_shift_line_numbers() -> None:
    pages = [Document(d.path, d.text.replace("\n\n\n", "\n\x0c\n\n\x0c")) for d in documents()]
    fed = Material(pages, MATERIAL.tokenizer)
    for name in ("recall", "lookup", "repoqa"):
        task = TASKS[name]
        context = task.build(fed, LENGTH, 8, task.dice(0, LENGTH, 0))
        texts = {d.path: d.text.split("\n") for d in context.documents}
        for question in context.questions:
            (place,) = question.places
            line = texts[place.path][place.first - 1]
            begun = question.cues[0] if name != "repoqa" else question.expected.split("\n")[0]
            assert line.strip().startswith(begun.strip())
            gone = dropped(context.documents, {place.path: {place.first}})
            kept = next(d.text for d in gone if d.path == place.path).split("\n")
            assert kept == texts[place.path][: place.first - 1] + texts[place.path][place.first :]
            with SearchSystem().reading(context.documents) as reader:
                passages = reader._passages
            for path, first, text, _, _ in passages:
                assert text.split("\n") == texts[path][first - 1 :][: len(text.split("\n"))]


def test_a_right_chat_answer_is_right_however_it_is_wrapped() -> None:
    task = Recall()
    for question in build("recall", count=20, length=6000).questions:
        lines = question.expected.split("\n")[1:7]
        right = "\n".join(lines)
        wrapped = (right, right.strip(), f"```python\n{right}\n```", f"\n\n{right}\n\n", question.expected)
        for said in wrapped:
            for tokens in (None, tuple(MATERIAL.tokenizer.encode(said))):
                scored = task.score(MATERIAL, question, [Answer(said, tokens, chat=True)])
                assert scored["token_accuracy"] == scored["sequence_accuracy"] == 1, said
        for said in ("", "no idea", question.cues[0], "\n".join(reversed(lines))):
            scored = task.score(MATERIAL, question, [Answer(said, chat=True)])
            assert scored["token_accuracy"] < 0.5 and scored["sequence_accuracy"] == 0, said
        half = task.score(MATERIAL, question, [Answer(right[:30], chat=True)])
        assert 0 < half["token_accuracy"] < 1


def test_a_chat_answer_has_room_for_the_whole_piece() -> None:
    dense = Material(
        [Document("a.txt", "".join(" ".join("0123456789" * 19)[:190] + f"{n}\n" for n in range(400)))],
        MATERIAL.tokenizer,
    )
    task = TASKS["mrcr_2"]
    for question in task.build(dense, 8192, 2, task.dice(0, 8192, 0)).questions:
        assert question.chat_budget > len(MATERIAL.tokenizer.encode(f"{question.facts['mark']} {question.expected}"))


class _Remembers:
    """Stands in for a bench: its answers are what follows the cue, and they cite so many lines."""

    def __init__(self, cites: int) -> None:
        self.cites, self.documents = cites, []  # type: ignore[var-annotated]

    @contextmanager
    def memory(self, texts: Documents) -> Iterator[_Remembers]:
        self.documents.append(texts)
        self.sizes = [sum(len(lines_of(d.text)) for d in each) for each in self.documents]
        yield self

    def recall(self, cue: str, **_: object) -> SimpleNamespace:
        document = next((d for d in self.documents[-1] if cue + "\n" in d.text), None)
        if document is None:
            return SimpleNamespace(text="", tokens=(), healed=0, citations=())
        before, _, after = document.text.partition(cue + "\n")
        line = before.count("\n") + 1
        cited = (Citation(document.path, line, line + self.cites - 1, 1.0),)
        return SimpleNamespace(text=after[:40], tokens=(), healed=0, citations=cited)


def test_the_control_of_the_causal_check_drops_as_many_lines() -> None:
    task = Citations()
    for count, cites, possible in ((2, 4, True), (12, 6, True), (20, 60, False)):
        context = build("citations", count=count)
        bench = _Remembers(cites)
        samples = list(task.measure(bench, context, LENGTH, 0))  # type: ignore[arg-type]
        whole, without, *control = bench.sizes
        assert bool(control) == possible == all("kept_without_random" in sample.metrics for sample in samples)
        for sample in samples:
            assert sample.detail["dropped_random"] == (whole - control[0] if possible else 0)
            assert sample.detail["dropped_cited"] >= whole - without > 0
        if possible:
            assert control == [without]


def test_no_constant_answer_finds_two_definitions() -> None:
    task = TASKS["lookup"]
    assert isinstance(task, Asking)
    text = "".join(
        f"class Thing{n}(Base):\n    def method_{n}(self):\n        return {n}\n\n    def other_{n}(self, part_{n}):\n"
        f"        return part_{n} * {n}\n\n"
        for n in range(200)
    )
    plain = Material([Document("a.py", text)], MATERIAL.tokenizer)
    questions = task.build(plain, LENGTH, 100, task.dice(0, LENGTH, 0)).questions
    assert len(questions) > 5
    for one in questions:
        assert sum(task.score(plain, each, [Answer(one.answers[0])])["accuracy"] for each in questions) == 1
        whole = f"{one.places[0].path}: {one.cues[0]}{one.answers[0]}"
        assert task.score(plain, one, [Answer(whole, chat=True)]) == {"accuracy": 1, "file_accuracy": 1}
        assert task.score(plain, one, [Answer(one.answers[0], chat=True)])["accuracy"] == 0
        assert task.score(plain, one, [Answer(str(one.facts["name"]), chat=True)])["accuracy"] == 0


@pytest.mark.parametrize(("length", "common", "other"), [(2048, 6, 1), (4095, 6, 1), (4096, 30, 3), (8192, 30, 3)])
def test_common_words_stand_as_often_as_in_ruler(length: int, common: int, other: int) -> None:
    context = build("cwe", length=length)
    counts = Counter(line.split()[1] for line in context.documents[0].text.splitlines())
    wanted = set(context.questions[0].answers)
    assert {counts[word] for word in wanted} == {common}
    assert {count for word, count in counts.items() if word not in wanted} == {other}
