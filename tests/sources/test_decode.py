"""Bytes to text: every encoding, no crash, and honesty about what was lost."""

from __future__ import annotations

import codecs
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.sources.decode import Decoded, binary_reason, decode

TEXT = "# Überschrift\nnaïve = 'façade — ça va?'\nx = \"日本語\"\n" * 3
LATIN = "Die Straße führt über die Brücke; à bientôt, señor, déjà vu.\n" * 20


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF8 + TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "utf-16-le"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "utf-16-be"),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), "utf-32-le"),
        (codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), "utf-32-be"),
    ],
)
def test_unicode_with_and_without_marks(raw: bytes, encoding: str) -> None:
    assert decode(raw) == Decoded(TEXT, encoding)
    assert binary_reason(raw[:8192]) is None


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(encoding: str) -> None:
    text = "def f(x):\n    return x\n"
    assert decode(text.encode(encoding)) == Decoded(text, encoding)


def test_a_declared_encoding_is_believed() -> None:
    text = "#!/usr/bin/python\n# -*- coding: koi8-r -*-\nx = 'привет'\n"
    assert decode(text.encode("koi8-r")) == Decoded(text, "koi8-r")
    false = "# coding: no-such-thing\nx = 'é'\n".encode("latin-1")
    assert isinstance(decode(false), Decoded)


def test_an_undeclared_encoding_is_guessed() -> None:
    decoded = decode(LATIN.encode("cp1252"))
    assert isinstance(decoded, Decoded)
    assert decoded.text == LATIN
    assert decoded.replaced == 0


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("shift_jis", "日本語のテキストです。これは例です。\n"), ("cp1251", "Это просто текст на русском языке.\n")],
)
def test_other_scripts_are_guessed(encoding: str, text: str) -> None:
    decoded = decode((text * 30).encode(encoding))
    assert isinstance(decoded, Decoded)
    assert decoded.text == text * 30


def test_damaged_utf8_stays_utf8_and_says_so() -> None:
    raw = TEXT.encode().replace("日".encode(), b"\xe6\x97", 1)
    decoded = decode(raw)
    assert isinstance(decoded, Decoded)
    assert (decoded.encoding, decoded.replaced) == ("utf-8", 1)
    assert decoded.text == TEXT.replace("日", "\ufffd", 1)
    cut = codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1]
    decoded = decode(cut)
    assert isinstance(decoded, Decoded)
    assert decoded.replaced == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"\x7fELF\x02\x01\x01" + bytes(9),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        codecs.BOM_UTF16_LE + random.Random(1).randbytes(2000),
        (b"\x01\x00\x02\x00\x03\x00") * 50,
        b"text\n" * 5000 + bytes(range(1, 32)) * 300,
    ],
)
def test_binaries_are_recognised(raw: bytes) -> None:
    reason = decode(raw)
    assert isinstance(reason, str)
    assert reason.startswith("binary file")


@given(st.binary(max_size=200))
def test_nothing_raises(raw: bytes) -> None:
    decoded = decode(raw)
    assert isinstance(decoded, str) or decoded.text is not None


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(
        lambda t: t[0] != "\ufeff"
    )
)
def test_utf8_text_comes_back_as_it_was(text: str) -> None:
    assert decode(text.encode()) == Decoded(text, "utf-8")


def test_line_ends_are_kept() -> None:
    assert decode(b"a\r\nb\rc\n") == Decoded("a\r\nb\rc\n", "utf-8")
