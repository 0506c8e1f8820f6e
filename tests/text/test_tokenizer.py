"""The tokenizer: lossless, no control tokens out of plain text, exact offsets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import foveal
from foveal.text import Tokenizer, TokenizerError
from foveal.text.specials import LAST_SPECIALS, THINK_START, USER
from foveal.text.wtf8 import complete_prefix, to_bytes, to_text

NANO = Path(foveal.__file__).parent / "weights" / "nano"
TOKENIZER = Tokenizer.from_file(NANO)

any_text = st.text(st.characters(), max_size=60)  # lone surrogates included
code_text = st.lists(
    st.sampled_from(["def ", "x", "):", "\n", "    ", "\r\n", "é", "😀", "\t", USER, THINK_START, "12345", "你好", " "])
).map("".join)


def test_vocabulary_is_laid_out_as_in_v4() -> None:
    assert TOKENIZER.vocab_size == 4096
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (0, 1)
    assert TOKENIZER.control_id("<｜▁pad▁｜>") == 2
    assert [TOKENIZER.control_id(token) for token in LAST_SPECIALS] == list(range(4080, 4096))


@given(any_text | code_text)
@example("a\ud800b\udc00\ud800\udc00")
@example("<｜begin▁of▁sentence｜><｜User｜>")
def test_encoding_loses_nothing(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode_bytes(ids) == text.encode("utf-8", "surrogatepass")
    assert TOKENIZER.decode(TOKENIZER.encode(text, special=True)) == text


@given(code_text)
def test_plain_text_never_becomes_a_control_token(text: str) -> None:
    assert not TOKENIZER.control_ids & set(TOKENIZER.encode(text + USER + "<｜end▁of▁sentence｜>"))


def test_prompts_do_get_control_tokens() -> None:
    ids = TOKENIZER.encode(f"{USER}hi{THINK_START}", special=True)
    assert ids[0] == TOKENIZER.control_id(USER)
    assert ids[-1] == TOKENIZER.control_id(THINK_START)
    assert TOKENIZER.decode(ids) == f"{USER}hi{THINK_START}"


@given(any_text | code_text)
def test_offsets_are_the_characters_a_token_touches(text: str) -> None:
    ids, offsets = TOKENIZER.encode_with_offsets(text)
    character_of_byte = [i for i, c in enumerate(text) for _ in to_bytes(c)]
    place = 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        size = len(TOKENIZER.token_bytes(token))
        assert (start, end) == (character_of_byte[place], character_of_byte[place + size - 1] + 1)
        place += size
    assert place == len(character_of_byte)
    same_ids, starts = TOKENIZER.encode_with_starts(text)
    assert same_ids.tolist() == ids
    assert starts.tolist() == [start for start, _ in offsets]


def test_a_character_split_over_tokens_is_one_character() -> None:
    ids, offsets = TOKENIZER.encode_with_offsets("a😀b")
    assert len(ids) > 3
    assert offsets == [(0, 1), *[(1, 2)] * (len(ids) - 2), (2, 3)]


@pytest.mark.parametrize("token", ["):\n", "   ", "       ", "           ", "               ", "\n\n", ":\n", "()\n"])
def test_common_indents_and_line_ends_are_single_tokens(token: str) -> None:
    assert len(TOKENIZER.encode(token)) == 1


def test_fingerprint_ignores_layout_and_sees_content() -> None:
    definition = (NANO / "tokenizer.json").read_text(encoding="utf-8")
    data = json.loads(definition)
    compact = Tokenizer(json.dumps(dict(reversed(data.items()))))
    assert compact.fingerprint() == TOKENIZER.fingerprint()
    data["model"]["merges"][10], data["model"]["merges"][11] = data["model"]["merges"][11], data["model"]["merges"][10]
    assert Tokenizer(json.dumps(data)).fingerprint() != TOKENIZER.fingerprint()


def test_a_pipe_is_no_tokenizer(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="it is not a file"):
        Tokenizer.from_file(tmp_path)


def test_unknown_ids_and_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"token 4096 is not in the vocabulary \(0 to 4095\)"):
        TOKENIZER.decode([4096])
    with pytest.raises(TokenizerError, match="-1"):
        TOKENIZER.decode([-1])
    with pytest.raises(TokenizerError, match="cannot read"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path)
    data = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8")) | {"normalizer": {"type": "NFC"}}
    with pytest.raises(TokenizerError, match="byte-level BPE"):
        Tokenizer(json.dumps(data))


def _changed(**changes: Any) -> str:
    data = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    model = data["model"] | changes.pop("model", {})
    return json.dumps(data | {"model": model} | changes)


@pytest.mark.parametrize("value", [None, 0, "x", [], {}, [1], {"type": "X"}, True])
@pytest.mark.parametrize("field", ["version", "added_tokens", "pre_tokenizer", "post_processor", "decoder", "model"])
def test_fields_of_other_types_are_refused(field: str, value: Any) -> None:
    data = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8")) | {field: value}
    try:
        Tokenizer(json.dumps(data))
    except TokenizerError:
        return
    assert value is None and field in ("post_processor", "decoder")  # that they are not there


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ({"one more": -1}, "not a tokenizer"),
        ({"one more": 5}, "id 5 has two tokens"),
        ({"one more": 4097}, "4096"),
        ({"one more": 4_000_000_000}, "4096"),
        ({"one more": 1 << 40}, "not a tokenizer"),
    ],
)
def test_each_id_has_one_token(tokens: dict[str, int], said: str) -> None:
    vocabulary = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    with pytest.raises(TokenizerError, match=said):
        Tokenizer(_changed(model={"vocab": vocabulary | tokens}))


def test_a_text_is_encoded_whole_and_always_alike() -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {
        **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 2, "pad_type_id": 0, "pad_token": "x"},
    }
    text = "def load(path): return 1"
    assert Tokenizer(_changed(truncation=truncation, padding=padding)).encode(text) == TOKENIZER.encode(text)
    with pytest.raises(TokenizerError, match="dropout"):
        Tokenizer(_changed(model={"dropout": 0.5}))


@given(st.binary(max_size=40) | any_text.map(to_bytes), st.integers(0, 40))
@example(b"\xed\xa0\x80", 1)
@example(b"\xf0\x9f\x98\x80", 3)
@example(b"\xe0\x80\x80", 2)
def test_decoding_can_be_cut_at_any_complete_prefix(data: bytes, cut: int) -> None:
    cut = complete_prefix(data[:cut])
    assert to_text(data[:cut]) + to_text(data[cut:]) == to_text(data)


@given(st.binary(max_size=40).filter(lambda data: b"\xed" not in data))
def test_malformed_bytes_are_replaced_as_python_does(data: bytes) -> None:
    assert to_text(data) == data.decode("utf-8", "replace")


@given(st.lists(st.integers(0, 4095), max_size=30))
def test_any_ids_decode(ids: list[int]) -> None:
    assert isinstance(TOKENIZER.decode(np.array(ids, dtype=np.int32)), str)
