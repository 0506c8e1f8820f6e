"""Streaming text: the pieces are the whole, and a stop string cuts exactly at any split."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import foveal
from foveal.text import StopChecker, StreamingDetokenizer, Tokenizer, TokenStream

TOKENIZER = Tokenizer.from_file(Path(foveal.__file__).parent / "weights" / "nano")


@given(st.lists(st.integers(0, 4095), max_size=40))
def test_pieces_joined_are_the_whole(ids: list[int]) -> None:
    stream = StreamingDetokenizer(TOKENIZER)
    pieces = [stream.push(token) for token in ids] + [stream.flush()]
    assert "".join(pieces) == TOKENIZER.decode(ids)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_no_piece_shows_half_a_character(text: str) -> None:
    stream = StreamingDetokenizer(TOKENIZER)
    shown = ""
    for token in TOKENIZER.encode(text):
        shown += stream.push(token)
        assert text.startswith(shown)
    assert shown == text
    assert stream.flush() == ""


def text_before_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: read character by character until the text ends in a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - len(max(found, key=len))], True
    return text, False


small_text = st.text("ab\n", max_size=24)


@given(
    small_text, st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3), st.lists(st.integers(0, 24), max_size=9)
)
def test_stop_strings_cut_exactly_at_any_split(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    expected, stopped = text_before_stop(text, stops)
    checker = StopChecker(stops)
    shown = ""
    for piece in pieces:
        shown += checker.push(piece)
        assert expected.startswith(shown)
    assert shown + checker.flush() == expected
    assert checker.stopped is stopped
    assert checker.push("more") == ("" if stopped else "more")


def test_a_possible_stop_string_is_held_back_and_released() -> None:
    checker = StopChecker(["END"])
    assert [checker.push(c) for c in "xENx"] == ["x", "", "", "ENx"]
    assert [checker.push(c) for c in "EN"] == ["", ""]
    assert checker.flush() == "EN"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopChecker(["a", ""])


@given(st.text("ab😀é\n", max_size=20), st.text("ab😀é\n", min_size=1, max_size=3))
def test_token_stream_is_detokenizer_and_stop_checker_in_one(text: str, stop: str) -> None:
    stream = TokenStream(TOKENIZER, [stop])
    shown = ""
    for token in TOKENIZER.encode(text):
        shown += stream.push(token)
    if not stream.stopped:
        shown += stream.flush()
    assert shown == text.partition(stop)[0]
    assert stream.stopped is (stop in text)
    assert (stream.matched == stop) is (stop in text)


def test_healed_bytes_are_not_shown_again() -> None:
    stream = TokenStream(TOKENIZER, ["):"], skip_bytes=2)
    ids = TOKENIZER.encode("):\n    return x")
    assert "".join(map(stream.push, ids)) + stream.flush() == "\n    return x"
    assert not stream.stopped
