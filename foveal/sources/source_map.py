"""Where each token of a context came from: file, line and column.

It takes four bytes a token and four a line in memory, about one a token when saved. A map grows by whole documents as
they are read and can be cut back to any token. Saved, it carries its version and a checksum; anything that does not add
up is refused and never guessed at.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from foveal.errors import FovealError
from foveal.sources.paths import check_path
from foveal.sources.tokenise import IntArray, TokenizedDocument

_MAGIC = b"FOVEALSM"
_VERSION = 1
_PREAMBLE = struct.Struct("<8sHxxxxxxQ32s")
"""Magic, version, length of the body, SHA-256 of the body."""


class SourceMapError(FovealError, ValueError):
    """A saved source map cannot be used, or a token is outside the map; the message says which and why."""

    code = "damaged"


@dataclass(frozen=True)
class Location:
    """Where a token begins: line and column from 1. Line 0 is the header line that introduces the file."""

    path: str
    line: int
    column: int


@dataclass(frozen=True)
class Span:
    """Lines `first_line` to `last_line` of a file, both included (0 and 0: nothing but its header line)."""

    path: str
    first_line: int
    last_line: int

    def __str__(self) -> str:
        lines = f"{self.first_line}-{self.last_line}" if self.last_line != self.first_line else f"{self.first_line}"
        return f"{self.path}:{lines}"


@dataclass(frozen=True, eq=False)
class _Piece:
    """One document's part of the map; `starts` and `line_starts` as in `TokenizedDocument`."""

    path: str
    starts: IntArray
    line_starts: IntArray

    def line(self, place: int) -> int:
        return int(np.searchsorted(self.line_starts, self.starts[place], side="right")) - 1


class SourceMap:
    """Token index (from 0, in reading order) to place, and back."""

    def __init__(self) -> None:
        self._pieces: list[_Piece] = []
        self._ends: list[int] = []

    # ------------------------------------------------------------------ growing and cutting

    def append(self, document: TokenizedDocument) -> None:
        """The tokens that come next are those of `document`. Documents without tokens leave no trace."""
        if len(document.ids) != len(document.starts):
            raise SourceMapError(f"{document.path}: {len(document.ids)} tokens but {len(document.starts)} places")
        self._append(_Piece(document.path, document.starts, document.line_starts))

    def truncate(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens. Raises `SourceMapError` if there are fewer."""
        if not 0 <= tokens <= self.tokens:
            raise SourceMapError(f"cannot cut to {tokens} tokens; the map has {self.tokens}")
        if tokens == self.tokens:
            return  # the last piece stays shared with whoever else has it
        keep = bisect.bisect_left(self._ends, tokens)
        rest = tokens - (self._ends[keep - 1] if keep else 0)
        last = self._pieces[keep] if rest else None
        del self._pieces[keep:], self._ends[keep:]
        if last is not None:
            self._append(_Piece(last.path, last.starts[:rest].copy(), last.line_starts))

    def forget_lines_behind(self) -> None:
        """Forget the lines of the last document that begin behind its last token."""
        if self._pieces:
            last = self._pieces[-1]
            count = int(np.searchsorted(last.line_starts, last.starts[-1], side="right"))
            self._pieces[-1] = _Piece(last.path, last.starts, last.line_starts[:count].copy())

    def copy(self) -> Self:
        """An independent map with the same content; the arrays are shared, for they never change."""
        other = type(self)()
        other._pieces, other._ends = list(self._pieces), list(self._ends)
        return other

    def _append(self, piece: _Piece) -> None:
        if len(piece.starts):
            self._pieces.append(piece)
            self._ends.append(self.tokens + len(piece.starts))

    # ------------------------------------------------------------------ asking

    @property
    def tokens(self) -> int:
        """How many tokens the map covers."""
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return self.tokens

    @property
    def documents(self) -> tuple[tuple[str, int, int], ...]:
        """Path, first token and the token after the last one, for each document in order."""
        firsts = [0, *self._ends][: len(self._pieces)]
        return tuple((piece.path, a, b) for piece, a, b in zip(self._pieces, firsts, self._ends, strict=True))

    def paths_from(self, token: int) -> tuple[str, ...]:
        """The paths of the documents that begin at `token` or behind it, in order; looks at no others."""
        following = bisect.bisect_left(self._ends, token) + 1 if token else 0
        return tuple(piece.path for piece in self._pieces[following:])

    def document_at(self, token: int) -> int:
        """Which of `documents` a token is in, by its place there. Raises `SourceMapError` if it is in none."""
        return self._find(token)[0]

    def line_starts(self, document: int) -> IntArray:
        """The first character of each line of a document (by its place in `documents`), as in `TokenizedDocument`."""
        return self._pieces[document].line_starts

    @property
    def nbytes(self) -> int:
        """Bytes its arrays take in memory."""
        return sum(piece.starts.nbytes + piece.line_starts.nbytes for piece in self._pieces)

    def locate(self, token: int) -> Location:
        """Where token number `token` begins. Raises `SourceMapError` if the map does not reach that far."""
        index, place = self._find(token)
        piece = self._pieces[index]
        line = piece.line(place)
        return Location(piece.path, line, int(piece.starts[place] - piece.line_starts[line]) + 1)

    def span(self, first: int, last: int) -> list[Span]:
        """The lines in which the tokens `first` to `last` (both included) begin: one `Span` for each file touched.

        A header is only mentioned (as line 0) when nothing else of the file is. Raises `SourceMapError` if the tokens
        are not in the map.
        """
        if first > last:
            raise SourceMapError(f"token {first} comes after token {last}; give the first one first")
        (start, place), (stop, last_place) = self._find(first), self._find(last)
        spans = []
        for index in range(start, stop + 1):
            piece = self._pieces[index]
            end = last_place if index == stop else len(piece.starts) - 1
            top, bottom = piece.line(place), piece.line(end)
            spans.append(Span(piece.path, max(top, min(bottom, 1)), bottom))
            place = 0
        return spans

    def tokens_of(self, path: str, first_line: int, last_line: int) -> Iterator[range]:
        """The tokens that begin in those lines (both included): a range for each time the file was read."""
        for piece, end in zip(self._pieces, self._ends, strict=True):
            if piece.path == path:
                edges = np.append(piece.line_starts, np.iinfo(np.int32).max)
                lines = np.clip([first_line, last_line + 1], 0, len(edges) - 1)
                a, b = np.searchsorted(piece.starts, edges[lines], side="left")
                if a < b:
                    offset = end - len(piece.starts)
                    yield range(offset + int(a), offset + int(b))

    def _find(self, token: int) -> tuple[int, int]:
        """Index of the piece, and the token's place in it."""
        if not 0 <= token < self.tokens:
            raise SourceMapError(f"token {token} is not in the source map (it has {self.tokens})")
        index = bisect.bisect_right(self._ends, token)
        return index, token - (self._ends[index - 1] if index else 0)

    # ------------------------------------------------------------------ saving

    def to_bytes(self) -> bytes:
        """The map as bytes, the same for the same map: preamble (version, SHA-256), then JSON and zipped arrays."""
        about = [[piece.path, len(piece.starts), len(piece.line_starts)] for piece in self._pieces]
        head = json.dumps(about, separators=(",", ":")).encode("ascii")
        arrays = [array for piece in self._pieces for array in (piece.starts, piece.line_starts)]
        steps = [np.diff(array, prepend=np.int32(0)).astype("<i4") for array in arrays]
        body = struct.pack("<Q", len(head)) + head + zlib.compress(b"".join(step.tobytes() for step in steps), 6)
        return _preamble(body) + body

    @classmethod
    def from_bytes(cls, data: bytes, *, covering: int | None = None) -> Self:
        """The map that `to_bytes` wrote. `covering`: the tokens that it must be of, when it comes from a stranger; what
        it says of its size is then held against them, and its paths must lie below a source (`check_path`).

        Raises `SourceMapError` if a single bit is not as it was written, or it is no map. No more is unpacked than it
        may hold.
        """
        body = _checked_body(data)
        about, packed = _documents(body, covering)
        steps = _unpacked(packed, 4 * sum(tokens + lines for _, tokens, lines in about))
        result, place = cls(), 0
        for path, tokens, lines in about:
            starts, line_starts = (steps[place:][:tokens], steps[place + tokens :][:lines])
            place += tokens + lines
            if line_starts[0]:
                raise SourceMapError(f"the source map does not begin {path!r} at its first character")
            result._append(_Piece(path, _summed(starts), _summed(line_starts)))
        return result


LINES_A_TOKEN = 16
LINES_BESIDE = 1 << 20
"""A map that comes from a stranger may have so many lines for each of its tokens, and so many more."""
_RATIO = 1032
"""zlib packs no more bytes than this into one."""


def _documents(body: bytes, covering: int | None) -> tuple[list[tuple[str, int, int]], bytes]:
    """Path, tokens and lines of each document, and the packed places of all."""
    size = int.from_bytes(body[:8], "little")
    head, packed = body[8 : 8 + size], body[8 + size :]
    if len(body) < 8 + size:
        raise SourceMapError(f"the source map says that its list has {size} bytes; it has {max(0, len(body) - 8)}")
    if covering is not None and head.count(b"[") + head.count(b"{") > 2 * covering + 64:
        raise SourceMapError("the source map lists more documents than it has tokens")
    try:
        about = json.loads(str(head, "ascii"))
    except (ValueError, RecursionError) as error:
        raise SourceMapError(f"the source map's list of documents is no JSON ({error})") from error
    if not isinstance(about, list) or not all(_is_document(item) for item in about):
        raise SourceMapError("the source map's list of documents is not of path, tokens and lines")
    tokens, lines = sum(item[1] for item in about), sum(item[2] for item in about)
    if 4 * (tokens + lines) > _RATIO * len(packed):
        raise SourceMapError(f"the source map declares {tokens} tokens and {lines} lines, which it cannot hold")
    if covering is not None:
        _check_stranger(about, tokens, lines, covering)
    return [(path, tokens, lines) for path, tokens, lines in about], packed


def _is_document(item: object) -> bool:
    if not isinstance(item, list) or [type(field) for field in item] != [str, int, int]:
        return False
    return item[1] >= 0 and item[2] >= 1


def _check_stranger(about: list[tuple[str, int, int]], tokens: int, lines: int, covering: int) -> None:
    if tokens != covering:
        raise SourceMapError(f"the source map is of {tokens} tokens, and {covering} are due")
    if lines > LINES_A_TOKEN * tokens + LINES_BESIDE:
        raise SourceMapError(f"the source map declares {lines} lines for {tokens} tokens")
    for path, _, _ in about:
        try:
            check_path(path)
        except ValueError as error:
            raise SourceMapError(f"the source map has a path that may not be: {error}") from error


def _unpacked(packed: bytes, expected: int) -> IntArray:
    """The differences of all places. Raises `SourceMapError` when they are not so many bytes, or lead backwards."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed, expected + 1)
    except zlib.error as error:
        raise SourceMapError(f"the source map cannot be unpacked ({error})") from error
    if len(raw) != expected or not stream.eof or stream.unused_data:
        raise SourceMapError(f"the source map does not hold the {expected} bytes of places that it declares")
    steps = np.frombuffer(raw, dtype="<i4")
    if len(steps) and int(steps.min()) < 0:
        raise SourceMapError("the source map's places lead backwards")
    return steps


def _summed(steps: IntArray) -> IntArray:
    places = np.cumsum(steps, dtype=np.int64)
    if len(places) and places[-1] > np.iinfo(np.int32).max:
        raise SourceMapError("the source map's places lead beyond any text")
    return places.astype(np.int32)


def _preamble(body: bytes) -> bytes:
    return _PREAMBLE.pack(_MAGIC, _VERSION, len(body), hashlib.sha256(body).digest())


def _checked_body(data: bytes) -> bytes:
    if len(data) < _PREAMBLE.size or not data.startswith(_MAGIC):
        raise SourceMapError("this is not a source map")
    _, version, size, digest = _PREAMBLE.unpack_from(data)
    if version != _VERSION:
        raise SourceMapError(f"the source map has version {version}; this program reads version {_VERSION}")
    body = data[_PREAMBLE.size :]
    if len(body) != size:
        raise SourceMapError(f"the source map is {len(body)} bytes long, expected {size}: it was cut off or added to")
    if hashlib.sha256(body).digest() != digest or data[: _PREAMBLE.size] != _preamble(body):
        raise SourceMapError("the source map is damaged: its checksum does not fit")
    return body
