"""Token healing: the certain part is a beginning of the source's own tokens, and the rest can always be completed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foveal
from foveal.text import PrefixConstraint, Tokenizer, allowed_tokens, heal

TOKENIZER = Tokenizer.from_file(Path(foveal.__file__).parent / "weights" / "nano")
SOURCE = (Path(foveal.__file__).parent / "config" / "model.py").read_text(encoding="utf-8")

any_text = st.text(st.characters(), max_size=30)


@given(any_text)
def test_the_parts_joined_are_the_cue(cue: str) -> None:
    prefix, remainder = heal(TOKENIZER, cue)
    assert TOKENIZER.decode_bytes(prefix) + remainder == cue.encode("utf-8", "surrogatepass")
    assert prefix == TOKENIZER.encode(cue)[: len(prefix)]


@settings(max_examples=300)
@given(st.integers(0, SOURCE.count("\n") - 1), st.data())
def test_wherever_a_source_is_cut_healing_finds_back_to_its_tokens(line: int, data: st.DataObject) -> None:
    lines = SOURCE.splitlines(keepends=True)
    cue_line = lines[line].rstrip("\n")
    cue = "".join(lines[max(0, line - 3) : line]) + cue_line[: data.draw(st.integers(1, max(1, len(cue_line))))]
    source = cue + "".join(lines[max(0, line - 3) :])[len(cue) :]
    true = TOKENIZER.encode(source)
    prefix, remainder = heal(TOKENIZER, cue)
    assert true[: len(prefix)] == prefix
    constraint = PrefixConstraint(TOKENIZER, remainder)
    for token in true[len(prefix) :]:
        if constraint.done:
            break
        allowed = constraint.allowed()
        assert allowed is not None and allowed[token]
        constraint.accept(token)
    assert constraint.done


def test_the_line_end_that_the_source_merges() -> None:
    prefix, remainder = heal(TOKENIZER, "def parse(text):")
    assert remainder == b"):"
    assert TOKENIZER.decode(prefix) == "def parse(text"
    merged = TOKENIZER.encode("):\n")
    assert len(merged) == 1
    assert allowed_tokens(TOKENIZER, remainder)[merged[0]]


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=6) | st.sampled_from([b"):", b"retur", b"    ", "é".encode()]))
def test_allowed_tokens_agrees_with_its_definition(remainder: bytes) -> None:
    expected = np.zeros(TOKENIZER.vocab_size, dtype=bool)
    for token in set(range(TOKENIZER.vocab_size)) - TOKENIZER.control_ids:
        data = TOKENIZER.token_bytes(token)
        expected[token] = data.startswith(remainder) or remainder.startswith(data)
    mask = allowed_tokens(TOKENIZER, remainder)
    assert mask.any()
    assert np.array_equal(mask, expected)
    held = PrefixConstraint(TOKENIZER, remainder).allowed()
    assert held is not None and np.array_equal(held, expected)


@given(st.binary(max_size=12), st.randoms(use_true_random=False))
def test_any_choice_of_allowed_tokens_produces_the_remainder(remainder: bytes, random: object) -> None:
    constraint = PrefixConstraint(TOKENIZER, remainder)
    produced = b""
    while not constraint.done:
        held = constraint.allowed()
        assert held is not None
        token = random.choice(np.flatnonzero(held).tolist())  # type: ignore[attr-defined]
        constraint.accept(token)
        produced += TOKENIZER.token_bytes(token)
    assert produced.startswith(remainder)
    assert constraint.allowed() is None


def test_a_contradicting_token_is_refused() -> None:
    constraint = PrefixConstraint(TOKENIZER, b"):")
    with pytest.raises(ValueError, match="does not continue"):
        constraint.accept(TOKENIZER.encode("x")[0])
    with pytest.raises(ValueError, match="does not continue"):
        constraint.accept(TOKENIZER.eos_id)
    assert constraint.remaining == b"):"


def test_nothing_and_one_word() -> None:
    assert heal(TOKENIZER, "") == ([], b"")
    assert heal(TOKENIZER, "def") == ([], b"def")


def test_a_word_without_end_is_not_taken_back_as_a_whole() -> None:
    prefix, remainder = heal(TOKENIZER, "x = " + "ab" * 5000)
    assert len(remainder) <= 64
    assert prefix
