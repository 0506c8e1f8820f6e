"""A source map in parts, so that saving it again writes only the part that grew.

Parts are whole documents, about `PART_TOKENS` tokens of them, counted from the first, so that a map that was appended
to is cut at the same tokens as before. Each part is a source map of its own, with the checksum that such a map carries.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from foveal.sources import SourceMap

PART_TOKENS = 1 << 16

_known: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], bytes]] = weakref.WeakKeyDictionary()
"""Last document of a part -> the documents before it, and the part's bytes. They never change."""


def split(source_map: SourceMap) -> list[tuple[int, bytes]]:
    """(tokens up to its end, bytes) of each part, in order."""
    parts: list[tuple[int, bytes]] = []
    part, end = SourceMap(), 0
    for piece in source_map._pieces:
        part._append(piece)
        end += len(piece.starts)
        if part.tokens >= PART_TOKENS:
            parts.append((end, _encoded(part)))
            part = SourceMap()
    return [*parts, (end, _encoded(part))] if part.tokens else parts


def _encoded(part: SourceMap) -> bytes:
    """The bytes of a part; those of an earlier save are used again, or saving would take as long as the map is."""
    pieces = tuple(part._pieces)
    known = _known.get(pieces[-1])
    if known is None or known[0] != pieces[:-1]:
        known = _known[pieces[-1]] = (pieces[:-1], part.to_bytes())
    return known[1]


def join(parts: Iterable[bytes]) -> SourceMap:
    """The inverse of `split`. Raises `foveal.sources.SourceMapError` when a part is damaged."""
    whole = SourceMap()
    for data in parts:
        for piece in SourceMap.from_bytes(data)._pieces:
            whole._append(piece)
    return whole


def cut(data: bytes, tokens: int) -> bytes:
    """A part with only its first `tokens` tokens, and no lines behind them."""
    source_map = SourceMap.from_bytes(data)
    if tokens < source_map.tokens:
        source_map.truncate(tokens)
        source_map.forget_lines_behind()
    return source_map.to_bytes()
