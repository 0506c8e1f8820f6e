"""Documents to tokens that know where they stand.

Positions are characters of the document as the model reads it, header line included. So a line of the file and a token
are related by one sorted array of line starts, and the header is simply line 0. A line of the file that is not read (in
a notebook) begins where the next one that is begins, and holds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from foveal.sources.document import Document, Skipped, document_text
from foveal.sources.header import removed_line, replaced_line

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]


class Encoder(Protocol):
    """What is needed of a tokenizer: ids and the character each begins in (`foveal.text.Tokenizer`)."""

    def encode_with_starts(self, text: str) -> tuple[IntArray, LongArray]: ...


class Decoder(Protocol):
    """What is needed of a tokenizer to read ids (`foveal.text.Tokenizer`)."""

    def token_bytes(self, token: int) -> bytes: ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """One document as tokens: the header line's, then the text's.

    `starts` int32 [n]: the character each token begins in, counted from the header's first. `line_starts` int32
    [lines + 1]: the first character of line 0 (the header), of line 1, and so on. Lines end in ``\n`` and nothing else,
    as for git, grep and editors.
    """

    path: str
    ids: IntArray
    starts: IntArray
    line_starts: IntArray

    @property
    def lines(self) -> IntArray:
        """Line of each token's first character, int32 [n]: 1 is the file's first line, 0 the header."""
        return (np.searchsorted(self.line_starts, self.starts, side="right") - 1).astype(np.int32)

    @property
    def columns(self) -> IntArray:
        """Column of each token's first character, int32 [n], counted in characters from 1."""
        return self.starts - self.line_starts[self.lines] + 1

    def part(self, first: int, after: int) -> Self:
        """The tokens `first` to `after` (not included) only, with their places; for reading on in mid-document."""
        return replace(self, ids=self.ids[first:after], starts=self.starts[first:after])


def from_ids(path: str, decoder: Decoder, ids: Sequence[int], header: int) -> TokenizedDocument:
    """A document of tokens that there are already: its first `header` characters are line 0."""
    sizes = np.array([len(decoder.token_bytes(token)) for token in ids], dtype=np.int64)
    data = np.frombuffer(decoder.decode_bytes(ids), dtype=np.uint8)
    characters = np.cumsum((data & 0xC0) != 0x80)
    firsts = np.minimum(np.cumsum(sizes) - sizes, max(len(data) - 1, 0))
    starts = np.maximum(characters[firsts] - 1, 0) if len(data) else np.zeros(len(ids), dtype=np.int64)
    breaks = characters[data == ord("\n")]
    lines = [0, header, *breaks[breaks > header].tolist()]
    return TokenizedDocument(
        path, np.array(ids, dtype=np.int32), starts.astype(np.int32), np.array(lines, dtype=np.int32)
    )


def replacing(document: TokenizedDocument, tokenizer: Encoder) -> TokenizedDocument:
    """`document` behind the line that says that it replaces an earlier version; with the header that is line 0."""
    text = replaced_line(document.path)
    ids, starts = _places(*tokenizer.encode_with_starts(text))
    line_starts = document.line_starts + np.int32(len(text))
    line_starts[0] = 0
    return replace(
        document,
        ids=np.concatenate([ids, document.ids]),
        starts=np.concatenate([starts, document.starts + np.int32(len(text))]),
        line_starts=line_starts,
    )


def removal(path: str, tokenizer: Encoder) -> TokenizedDocument:
    """What is read of a file that is gone: one line, which is no line of the file (it has line 0 only)."""
    ids, starts = tokenizer.encode_with_starts(removed_line(path))
    return TokenizedDocument(path, *_places(ids, starts), np.zeros(1, dtype=np.int32))


def _places(ids: IntArray, starts: LongArray) -> tuple[IntArray, IntArray]:
    return ids.astype(np.int32), starts.astype(np.int32)


def tokenize_document(document: Document, tokenizer: Encoder) -> TokenizedDocument:
    """The tokens of one document (see `document_text`) with their places. No control tokens, no BOS."""
    text = document_text(document)
    ids, starts = tokenizer.encode_with_starts(text)
    return TokenizedDocument(document.path, *_places(ids, starts), _line_starts(text, document.numbers))


def _line_starts(text: str, numbers: Sequence[int] | None) -> IntArray:
    """`line_starts` of a text with its header. `numbers` are the lines of the file that those of the text are."""
    starts, end = [0], text.find("\n") + 1
    while end < len(text):  # the end of the last line begins no other one
        starts.append(end)
        end = text.find("\n", end) + 1 or len(text)
    if numbers is None:
        return np.array(starts, dtype=np.int32)
    made = [0]
    for start, number in zip(starts[1:], numbers, strict=True):
        made.extend([start] * (number + 1 - len(made)))
    return np.array(made, dtype=np.int32)


def tokenize_source(
    source: Iterable[Document | Skipped],
    tokenizer: Encoder,
    *,
    on_skip: Callable[[Skipped], None] | None = None,
    on_document: Callable[[Document], None] | None = None,
) -> Iterator[TokenizedDocument]:
    """The documents of `source` as tokens, one at a time.

    `on_skip` hears of everything left out; `on_document` of each document before it is tokenised (its encoding, say).
    """
    for item in source:
        if isinstance(item, Skipped):
            if on_skip is not None:
                on_skip(item)
            continue
        if on_document is not None:
            on_document(item)
        yield tokenize_document(item, tokenizer)
