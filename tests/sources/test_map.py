"""The source map: every token has the right file, line and column, and a damaged map is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foveal
from foveal.sources import (
    Document,
    Location,
    Skipped,
    SourceMap,
    SourceMapError,
    Span,
    document_text,
    header_line,
    read_source,
    tokenize_document,
    tokenize_source,
)
from foveal.text import Tokenizer

TOKENIZER = Tokenizer.from_file(Path(foveal.__file__).parent / "weights" / "nano")

pieces = st.sampled_from(
    [
        "def f(x):",
        "x",
        " ",
        "    ",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        "é",
        "😀",
        "日本",
        "\t",
        "\x0c",
        "\u2028",
        "123",
        "\ud800",
    ]
)
texts = st.lists(pieces, min_size=1, max_size=25).map("".join)
documents = st.lists(st.builds(Document, st.sampled_from(["a.py", "b/ü.py", "c d.txt"]), texts), max_size=4)


def naive_places(document: Document) -> list[tuple[int, int]]:
    """Line and column of every character of the document as read, by walking over it."""
    places, line, column = [], 0, 1
    for character in document_text(document):
        places.append((line, column))
        column += 1
        if character == "\n":
            line, column = line + 1, 1
    return places


def build(contents: list[Document]) -> tuple[SourceMap, list[Location]]:
    """A map, and the place of every token by the naive way."""
    places, expected = SourceMap(), []
    for document in contents:
        tokens = tokenize_document(document, TOKENIZER)
        places.append(tokens)
        by_character = naive_places(document)
        _, offsets = TOKENIZER.encode_with_offsets(document_text(document))
        expected += [Location(document.path, *by_character[start]) for start, _ in offsets]
    return places, expected


@settings(max_examples=200)
@given(documents)
def test_every_token_is_where_a_naive_count_puts_it(contents: list[Document]) -> None:
    places, expected = build(contents)
    assert places.tokens == len(places) == len(expected)
    assert [places.locate(token) for token in range(len(expected))] == expected


@given(texts)
def test_lines_and_columns_of_a_document(text: str) -> None:
    tokens = tokenize_document(Document("a.py", text), TOKENIZER)
    by_character = naive_places(Document("a.py", text))
    assert list(zip(tokens.lines.tolist(), tokens.columns.tolist(), strict=True)) == [
        by_character[start] for start in tokens.starts
    ]
    assert TOKENIZER.decode(tokens.ids) == document_text(Document("a.py", text))


def test_line_ends_marks_and_split_characters(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbfx = 1\r\ny = '\xf0\x9f\x98\x80' + z\r\rlast")
    (document,) = tokenize_source(read_source(tmp_path), TOKENIZER)
    places = SourceMap()
    places.append(document)
    where = {TOKENIZER.decode([token]): places.locate(i) for i, token in enumerate(document.ids)}
    assert where["#"] == Location("a.py", 0, 1)
    assert where["x"] == Location("a.py", 1, 1)  # the mark is no column
    assert where["y"] == Location("a.py", 2, 1)  # \r\n is one line end
    assert where[" z"] == Location("a.py", 2, 10)  # an emoji is one column
    last = places.locate(len(document.ids) - 1)
    assert (last.line, last.column) == (2, 18)  # the line end that the file lacks; a lone \r ends no line
    emoji = [i for i, token in enumerate(document.ids) if b"\x98" in TOKENIZER.token_bytes(token)]
    assert {places.locate(i).column for i in emoji} == {6}


def test_spans_over_files_and_headers() -> None:
    first, second, third = Document("a.py", "a\nb\nc\n"), Document("b.py", "x\ny\n"), Document("c.py", "z\n")
    places, _ = build([first, second, third])
    (_, a, b), (_, c, d), (_, e, f) = places.documents
    assert (a, b, d, f) == (0, c, e, places.tokens)
    assert places.span(0, places.tokens - 1) == [Span("a.py", 1, 3), Span("b.py", 1, 2), Span("c.py", 1, 1)]
    assert places.span(a, a) == [Span("a.py", 0, 0)]
    assert places.span(b - 1, c) == [Span("a.py", 3, 3), Span("b.py", 0, 0)]
    assert str(places.span(d - 4, d - 1)[0]) == "b.py:1-2"
    assert str(Span("b.py", 2, 2)) == "b.py:2"
    with pytest.raises(SourceMapError, match="comes after"):
        places.span(3, 2)
    for token in (-1, places.tokens):
        with pytest.raises(SourceMapError, match="not in the source map"):
            places.locate(token)


@given(documents, st.integers(0, 6), st.integers(0, 6))
def test_tokens_of_lines_is_the_inverse(contents: list[Document], first: int, more: int) -> None:
    places, expected = build(contents)
    for path in {document.path for document in contents} | {"nowhere"}:
        found = [token for part in places.tokens_of(path, first, first + more) for token in part]
        assert found == [i for i, at in enumerate(expected) if at.path == path and first <= at.line <= first + more]


@given(documents, st.data())
def test_cutting_and_reading_on(contents: list[Document], data: st.DataObject) -> None:
    places, expected = build(contents)
    before = places.copy()
    cut = data.draw(st.integers(0, places.tokens))
    places.truncate(cut)
    assert [places.locate(token) for token in range(places.tokens)] == expected[:cut]
    for document, (_, start, end) in zip(contents, before.documents, strict=True):
        if end > cut:
            tokens = tokenize_document(document, TOKENIZER)
            places.append(tokens.part(max(0, cut - start), end - start))
    assert [places.locate(token) for token in range(places.tokens)] == expected
    assert [before.locate(token) for token in range(before.tokens)] == expected
    with pytest.raises(SourceMapError, match="cannot cut"):
        places.truncate(places.tokens + 1)


@given(documents)
def test_paths_from_a_token_are_those_of_what_begins_there_or_later(contents: list[Document]) -> None:
    places, _ = build(contents)
    for token in range(places.tokens + 2):
        assert places.paths_from(token) == tuple(path for path, first, _ in places.documents if first >= token)


@given(documents)
def test_saving_loses_nothing(contents: list[Document]) -> None:
    places, expected = build(contents)
    data = places.to_bytes()
    back = SourceMap.from_bytes(data)
    assert back.documents == places.documents
    assert [back.locate(token) for token in range(back.tokens)] == expected
    assert back.to_bytes() == data


def test_any_damage_is_refused() -> None:
    data = build([Document("a.py", "x = 1\n")])[0].to_bytes()
    for place in range(len(data)):
        for bit in (1, 128):
            damaged = bytearray(data)
            damaged[place] ^= bit
            with pytest.raises(SourceMapError):
                SourceMap.from_bytes(bytes(damaged))
    for wrong in (b"", data[:-1], data[:20], data + b"x", b"{}" * 100):
        with pytest.raises(SourceMapError):
            SourceMap.from_bytes(wrong)


def test_the_map_is_small() -> None:
    source = (Path(foveal.__file__).parent / "config" / "model.py").read_text(encoding="utf-8")
    places, _ = build([Document("config.py", source)])
    assert places.nbytes <= 4 * (places.tokens + source.count("\n") + 2)
    assert len(places.to_bytes()) < 1.5 * places.tokens + 200


def test_skips_and_documents_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x\n")
    (tmp_path / "b.bin").write_bytes(b"\0")
    skipped: list[Skipped] = []
    seen: list[Document] = []
    tokens = list(tokenize_source(read_source(tmp_path), TOKENIZER, on_skip=skipped.append, on_document=seen.append))
    assert [document.path for document in tokens] == ["a.py"]
    assert [item.path for item in skipped] == ["b.bin"]
    assert seen == [Document("a.py", "x\n")]


def test_the_header_is_what_the_corpus_has() -> None:
    assert header_line("pkg/mod.py") == "# file: pkg/mod.py\n"
    assert json.dumps(TOKENIZER.decode(TOKENIZER.encode(header_line("pkg/mod.py")))) == '"# file: pkg/mod.py\\n"'
