"""Cues as people type them: from the middle of a line, with the ends of words cut, or of something that is not there.

The model in the box is the one that wants blanks before a cue, so it is the one that runs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveal.engine import Engine
from foveal.memory import Memory
from foveal.memory import attempt as attempts

NEEDLES = ["# The door code of the archive is 90-31-77.", "    limit = compute_limit(station, 4711)  # by night"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.open("nano", threads=1)


@pytest.fixture(scope="module")
def memory(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    """Two needles in functions that all look alike."""
    folder = tmp_path_factory.mktemp("cues")
    lines = [f"def step_{n}(value):\n    return value * {n} + offset_{n % 7}\n" for n in range(60)]
    lines[10] += NEEDLES[0] + "\n"
    lines[20] += NEEDLES[1] + "\n"
    (folder / "steps.py").write_text("\n".join(lines))
    with Memory.read(engine, folder) as memory:
        yield memory


@pytest.fixture
def prompted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that are run."""
    seen: list[list[int]] = []
    start = engine.start

    def noted(tokens: list[int], **settings: Any) -> Any:
        seen.append(tokens)
        return start(tokens, **settings)

    monkeypatch.setattr(engine, "start", noted)
    return seen


@pytest.mark.parametrize(
    ("cue", "following"), [("door code of the archive is", " 90-31-77."), ("compute_limit(station, 47", "11)")]
)
def test_a_cue_from_the_middle_of_a_line_is_found(memory: Memory, cue: str, following: str) -> None:
    pages = memory.engine.pool.live
    result = memory.recall(cue, max_tokens=12)
    assert result.text.startswith(following)
    assert 0 < result.cue_tokens == result.cue_matched
    lines = (Path(memory.options.source) / "steps.py").read_text().split("\n")
    first = result.citations[0]
    assert any(cue in line for line in lines[first.first_line - 1 : first.last_line])
    assert memory.engine.pool.live == pages


def test_one_prompt_is_enough_where_the_cue_stands_as_it_was_typed(memory: Memory, prompted: list[list[int]]) -> None:
    for cue in (NEEDLES[0][:34], NEEDLES[1][:25], " door code of the archive is"):
        del prompted[:]
        result = memory.recall(cue, max_tokens=3)
        assert len(prompted) == 1 and result.cue_tokens == result.cue_matched > 0, cue


def test_a_cue_that_does_not_stand_there_says_so(memory: Memory, prompted: list[list[int]]) -> None:
    pages = memory.engine.pool.live
    result = memory.recall("The capital of France, as everybody knows, is", max_tokens=8)
    assert len(prompted) == len(attempts.OPENINGS) and result.cue_matched < result.cue_tokens // 2
    assert memory.engine.pool.live == pages


def test_a_space_before_it_is_the_cue_s_own(memory: Memory, prompted: list[list[int]]) -> None:
    memory.recall(" The capital of France is", max_tokens=3)
    assert len(prompted) == 3
    del prompted[:]
    memory.recall("\nThe capital of France is", max_tokens=3)
    assert len(prompted) == 1


def test_of_a_cue_longer_than_the_blanks_only_the_end_is_seen(memory: Memory, prompted: list[list[int]]) -> None:
    memory.recall("The capital of France is not known here. " * 8, max_tokens=3)
    assert len(prompted) == 1


def test_an_opening_s_tokens_are_not_the_cue_s(memory: Memory) -> None:
    cue = "value * 12 + offset_5"
    typed, spaced, line, blank_line = attempts.prompts(memory.engine, memory.sequence, cue, True)
    tokenizer = memory.engine.tokenizer
    for prompt in (typed, line, blank_line):
        assert prompt.cue == typed.cue and tokenizer.decode(prompt.cue) + prompt.remainder.decode() == cue
    assert tokenizer.decode(spaced.cue) + spaced.remainder.decode() == " " + cue
    assert [p.tokens[-1 - len(p.cue)] for p in (line, blank_line)] == [tokenizer.encode(t)[0] for t in ("\n", "\n\n")]


def test_what_fails_in_the_second_attempt_leaves_no_pages(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, made = memory.engine.pool.live, []
    submitted = attempts.Attempt._submitted

    def failing(self: attempts.Attempt, *rest: Any) -> Any:
        made.append(self)
        if len(made) == 2:
            raise RuntimeError("no second one")
        return submitted(self, *rest)

    monkeypatch.setattr(attempts.Attempt, "_submitted", failing)
    stream = memory.recall_stream("The capital of France is", max_tokens=3)
    with pytest.raises(RuntimeError, match="no second one"):
        stream.finish()
    assert len(made) == 2 and memory.engine.pool.live == pages
    assert stream.result.text == "" and stream.result.finish_reason == "cancelled"
