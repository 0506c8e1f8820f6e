"""Pieces of prompts: the same ids whether they are kept or not, and room for so many only."""

from __future__ import annotations

from chat_support import TOKENIZER

from foveal.text.pieces import Piece, PieceEncoder
from foveal.text.specials import EOS, USER


def test_ids_are_those_of_the_tokenizer_and_starts_are_told() -> None:
    encoder = PieceEncoder(TOKENIZER)
    long = "a text of some length, " * 9
    pieces = [Piece(USER, control=True), Piece(long), Piece("short"), Piece(EOS, control=True)]
    expected = [TOKENIZER.control_id(USER), *TOKENIZER.encode(long), *TOKENIZER.encode("short"), TOKENIZER.eos_id]
    for _ in range(2):
        ids, starts = encoder.encode(pieces)
        assert ids == expected
        assert starts == [0, 1, 1 + len(TOKENIZER.encode(long)), len(expected) - 1, len(expected)]


def test_the_oldest_texts_make_room() -> None:
    encoder = PieceEncoder(TOKENIZER, max_characters=250)
    texts = [letter * 100 for letter in "abca"]
    for text in texts:
        assert list(encoder.plain(text)) == TOKENIZER.encode(text)
    assert list(encoder._kept) == ["c" * 100, "a" * 100]
    encoder.plain("d" * 300)
    assert not encoder._kept
