"""A tokenizer file made into ids and bytes: the nano's 4096 entries or the official 129,280.

Text is never mistaken for control. `encode` treats every string as plain text, so source code that contains
``<｜User｜>`` cannot inject a turn; prompts that are meant to hold control tokens say ``special=True``. And nothing is
lost: ``decode(encode(text)) == text`` for every Python string, lone surrogates included (see `wtf8`).

Only byte-level BPE without a normaliser is accepted, for then tokens are slices of the text's UTF-8 bytes. Offsets are
computed from those slices, and so stay exact where a token boundary falls inside a character.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tokenizers

from foveal.errors import FovealError
from foveal.process import space
from foveal.text.specials import BOS, EOS
from foveal.text.wtf8 import to_bytes, to_text

IdArray = npt.NDArray[np.int32]

_SURROGATES = re.compile("([\ud800-\udfff]+)")
_ROOM = 32 << 20
_ROOM_FOR_EACH = 64
"""Bytes that the library is given to work in, beside those for each character; it ends the process without them."""
_MEANINGFUL = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model")


class TokenizerError(FovealError, ValueError):
    """A tokenizer file cannot be used, or an id is not in the vocabulary; the message says which and why."""

    code = "invalid_request"


class Tokenizer:
    """Byte-level BPE over a ``tokenizer.json``. Immutable, and safe to use from several threads."""

    def __init__(self, definition: str, *, bos: str = BOS, eos: str = EOS) -> None:
        """`definition` is the content of a ``tokenizer.json``; `bos` and `eos` name the tokens that begin and end a
        text. Raises `TokenizerError` if it is not byte-level BPE or lacks one of the two."""
        self._special = _built(definition)  # it knows the types of all fields
        data = _parse(definition)
        self._data = data
        self._plain = _built(json.dumps(data | {"added_tokens": [], "post_processor": None}))
        self._control: dict[str, int] = {entry["content"]: entry["id"] for entry in data["added_tokens"]}
        self._bytes = self._byte_table()
        self._lengths = np.array([len(token) for token in self._bytes], dtype=np.int64)
        self._byte_ids = {token[0]: id_ for id_, token in enumerate(self._bytes) if len(token) == 1}
        self.bos_id = self._required(bos)
        """Id of the token that begins a sequence (0 in V4's vocabularies)."""
        self.eos_id = self._required(eos)
        """Id of the token that ends one (1)."""

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read a ``tokenizer.json``, or the one in a folder. Raises `TokenizerError` if it is missing or no good.

        A ``tokenizer_config.json`` beside it may name other tokens than DeepSeek's for the beginning and the end of a
        text; where it names no beginning, the end serves as one.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        try:
            if path.exists() and not path.is_file():  # opening a pipe would wait for ever
                raise OSError("it is not a file")
            definition = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"cannot read the tokenizer {path}: {error}") from error
        try:
            return cls(definition, **_edges(path.with_name("tokenizer_config.json")))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    # ------------------------------------------------------------------ the vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included: every id is below it."""
        return len(self._bytes)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Text to id of the tokens that plain text never becomes (roles, thinking marks, padding ...)."""
        return dict(self._control)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The control tokens that the file flags as special: ids that are never shown."""
        return frozenset(entry["id"] for entry in self._data["added_tokens"] if entry.get("special"))

    def strips(self, token: str) -> tuple[bool, bool]:
        """Whether a control token takes white space on its left and right with it, where its text is looked for."""
        entry: dict[str, Any] = next((e for e in self._data["added_tokens"] if e["content"] == token), {})
        return bool(entry.get("lstrip")), bool(entry.get("rstrip"))

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids of `control_tokens`."""
        return frozenset(self._control.values())

    def control_id(self, token: str) -> int:
        """Id of a control token such as ``<｜User｜>``. Raises `TokenizerError` if the vocabulary lacks it."""
        return self._required(token)

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for. Raises `TokenizerError` for an id outside the vocabulary."""
        if not 0 <= token < len(self._bytes):
            raise TokenizerError(f"token {token} is not in the vocabulary (0 to {len(self._bytes) - 1})")
        return self._bytes[token]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that decides the ids; the file's layout and key order do not matter."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        meaningful = {key: self._data.get(key) for key in _MEANINGFUL}
        canonical = json.dumps(meaningful, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    # ------------------------------------------------------------------ text to ids

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, no BOS added. Control tokens written out in it become control ids only if `special`."""
        engine = self._special if special else self._plain
        if text.isascii() or not _SURROGATES.search(text):
            return _ids(engine, text)
        ids: list[int] = []
        for index, part in enumerate(_SURROGATES.split(text)):
            if index % 2:
                ids += [self._byte_ids[byte] for byte in to_bytes(part)]
            else:
                ids += _ids(engine, part)
        return ids

    def encode_with_starts(self, text: str) -> tuple[IdArray, npt.NDArray[np.int64]]:
        """Plain-text ids (int32 [n]) and where each begins (int64 [n]): the index of its first byte's character.

        Raises `TokenizerError` if the tokens are not exactly the text's bytes (a vocabulary without all 256 bytes).
        """
        ids = np.array(self.encode(text), dtype=np.int32)
        first, _ = self._byte_edges(ids, text)
        return ids, self._characters(text, first)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Plain-text ids and, for each, the characters it touches as a half-open range.

        Tokens that share a character (a boundary inside it) all include that character in their range.
        """
        ids = np.array(self.encode(text), dtype=np.int32)
        first, after = self._byte_edges(ids, text)
        starts, ends = self._characters(text, first), self._characters(text, after - 1) + 1
        return ids.tolist(), list(zip(starts.tolist(), ends.tolist(), strict=True))

    def last_piece(self, text: str) -> int:
        """Index of the character where the pre-tokeniser's last piece of `text` begins (its length if it is empty).

        Tokens never cross pieces; text that is appended can change at most the last ones.
        """
        tail = _SURROGATES.split(text)[-1]
        pieces = self._plain.pre_tokenizer.pre_tokenize_str(tail)
        return len(text) - len(tail) + (pieces[-1][1][0] if pieces else len(tail))

    # ------------------------------------------------------------------ ids to text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, joined; control tokens as their text. Raises `TokenizerError` for an unknown id."""
        return b"".join([self.token_bytes(int(token)) for token in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens. Bytes that are no UTF-8 become U+FFFD (ids cut inside a character, say)."""
        return to_text(self.decode_bytes(ids))

    # ------------------------------------------------------------------ inside

    def _byte_table(self) -> list[bytes]:
        vocabulary: dict[str, int] = self._data["model"]["vocab"] | self._control
        table: dict[int, str] = {}
        for token, id_ in vocabulary.items():
            if id_ in table:
                raise TokenizerError(f"id {id_} has two tokens, {table[id_]!r} and {token!r}; it must have one")
            table[id_] = token
        missing = [id_ for id_ in range(len(table)) if id_ not in table]
        if missing:
            raise TokenizerError(f"ids {missing[:8]} have no token; the vocabulary must have no gaps")
        tokens = (table[id_] for id_ in range(len(table)))
        return [token.encode() if token in self._control else _unmap(token) for token in tokens]

    def _required(self, token: str) -> int:
        try:
            return self._control[token]
        except KeyError:
            raise TokenizerError(f"the tokenizer has no control token {token!r}; is it a DeepSeek-V4 one?") from None

    def _byte_edges(self, ids: IdArray, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        after = np.cumsum(self._lengths[ids])
        expected = len(text) if text.isascii() else len(to_bytes(text))
        if (int(after[-1]) if len(after) else 0) != expected:
            raise TokenizerError("the tokens do not cover the text; the vocabulary lacks some of the 256 bytes")
        return after - self._lengths[ids], after

    @staticmethod
    def _characters(text: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Byte positions (inside the text) to character indices."""
        if text.isascii():
            return places
        data = np.frombuffer(to_bytes(text), dtype=np.uint8)
        return np.cumsum((data & 0xC0) != 0x80)[places] - 1


def _ids(engine: tokenizers.Tokenizer, text: str) -> list[int]:
    space.require(_ROOM + _ROOM_FOR_EACH * len(text), "the tokenizer")
    # The batch call is the one that leaves out the library's own offsets: a third faster.
    return engine.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _edges(path: Path) -> dict[str, str]:
    """The names of the first and the last token of a text, as a ``tokenizer_config.json`` gives them."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        bos, eos = (_token_name(config.get(key)) for key in ("bos_token", "eos_token"))
    except (OSError, ValueError, AttributeError):
        return {}
    return {"bos": bos or eos, "eos": eos} if eos else {}


def _token_name(value: Any) -> str | None:
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) and name else None


def _built(definition: str) -> tokenizers.Tokenizer:
    space.require(_ROOM + _ROOM_FOR_EACH * len(definition), "the tokenizer")
    try:
        built = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # it has no class of its own for them
        raise TokenizerError(f"not a tokenizer.json: {error}") from error
    built.no_truncation()  # what the file was saved with for other ends: every text is encoded whole
    built.no_padding()
    return built


def _parse(definition: str) -> dict[str, Any]:
    try:
        data = json.loads(definition)
        kind, vocabulary = data["model"]["type"], data["model"]["vocab"]
        normaliser = data.get("normalizer")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"not a tokenizer.json: {error}") from error
    data["added_tokens"] = data.get("added_tokens") or []
    empty = normaliser is None or normaliser == {"type": "Sequence", "normalizers": []}
    if kind != "BPE" or not isinstance(vocabulary, dict) or not empty or not _has_byte_level(data.get("pre_tokenizer")):
        raise TokenizerError("only byte-level BPE without a normaliser can be used (it alone keeps every byte)")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if data["model"].get(name):
            raise TokenizerError(f"its model has {name} {data['model'][name]!r}, which changes the text's tokens")
    return data


def _has_byte_level(pre_tokenizer: Any) -> bool:
    steps: Sequence[Any] = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    return any(step and step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps)


def _printable_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself, or the next free one from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + place): byte for place, byte in enumerate(rest)}


_ALPHABET = _printable_alphabet()


def _unmap(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        # Placeholders of the base vocabulary that no merge produces: they are only ever shown.
        return token.encode("utf-8")
