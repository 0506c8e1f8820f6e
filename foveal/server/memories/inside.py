"""What is in a memory: its files, their lines as they were read, what has changed since, and the bytes it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any

from foveal.memory import Memory, ReadError
from foveal.memory.reading import look
from foveal.memory.versions import latest_pieces, pieces
from foveal.plan.plan import V32_LAYERS, rivals
from foveal.server.citing import freshness
from foveal.server.failures import ApiError, without_places
from foveal.sources import SourceError

Json = dict[str, Any]

AROUND = 40
"""Lines that are shown before and after a token, where no lines are named."""
MOST_LINES = 2000


def file_map(memory: Memory) -> Json:
    """Where each file stands, in tokens from the beginning. `outdated`: an earlier version, or one that is gone."""
    latest = latest_pieces(memory.places)
    files = [
        {
            "path": piece.path,
            "first": piece.first,
            "after": piece.after,
            "outdated": latest[piece.path] != piece or piece.removal,
        }
        for piece in pieces(memory.places)
    ]
    return {"object": "memory.map", "name": memory.name, "tokens": memory.length, "files": files}


def sizes(memory: Memory) -> Json:
    """Bytes by kind, beside those that other architectures would keep for as many tokens. The first rivals are whole
    models; `same_layers` is the cache of the first of them, DeepSeek-V3.2, in as many layers as this model has."""
    config, kinds = memory.engine.config, memory.nbytes().to_dict()
    whole = rivals(config, memory.length, "bf16" if memory.engine.kv.kv == "bf16" else "fp8")
    return {
        "object": "memory.bytes",
        "name": memory.name,
        "tokens": memory.length,
        "layers": config.num_hidden_layers,
        "format": str(memory.engine.kv),
        "kinds": kinds,
        "total": sum(kinds.values()),
        "same_layers": whole[0].nbytes * config.num_hidden_layers // V32_LAYERS,
        "rivals": [{"name": each.name, "bytes": each.nbytes} for each in whole],
    }


def changed(memory: Memory) -> Json:
    """The files that are not as they were read. `known` is False, with the `reason`, where the source cannot be looked
    at. Reads the source."""
    told: Json = {"object": "memory.changes", "name": memory.name}
    try:
        if memory.options.once_only:
            raise ReadError("it was not read from files, so nothing can be compared with it")
        _, found = look(memory, None, None)
    except (ReadError, SourceError) as error:
        return told | {
            "known": False,
            "reason": without_places(error, memory.options.named),
            "changed": [],
            "new": [],
            "removed": [],
        }
    return told | {
        "known": True,
        "reason": None,
        "changed": sorted(found.changed),
        "new": sorted(found.new),
        "removed": sorted(found.removed),
    }


# ---------------------------------------------------------------------- lines


@dataclass(frozen=True)
class _Version:
    """One time a file was read: its number among the documents, its text, and its lines without their ends."""

    number: int
    path: str
    text: str
    lines: list[str]
    outdated: bool

    @property
    def digest(self) -> str:
        """As citations give it."""
        return sha256(self.text.rstrip("\n").encode("utf-8", "surrogatepass")).hexdigest()


def lines_at(memory: Memory, token: int) -> Json:
    """The lines around token number `token`. Raises `ApiError`."""
    if not 0 <= token < memory.length:
        raise ApiError("invalid_request", f"the memory has {memory.length} tokens", param="token")
    number, line = memory.places.document_at(token), memory.places.locate(token).line
    version = _version(memory, number)
    return _told(memory, version, max(1, line - AROUND), line + AROUND) | {"token_line": line or None}


def lines_of(memory: Memory, path: str, digest: str | None, first: int | None, last: int | None) -> Json:
    """Lines of a file as the memory read it: of the version with that digest, else of the latest. Raises `ApiError`."""
    for version in _versions(memory, path):
        if digest is None or version.digest == digest:
            return _told(memory, version, first or 1, last or MOST_LINES)
    what = f"no version of {path} with that digest" if digest else f"no file {path}"
    raise ApiError("not_found", f"the memory has {what}", param="path", detail="path_not_found")


def _versions(memory: Memory, path: str) -> Iterator[_Version]:
    """All versions of a file, the latest first; those that only say that it is gone are left out."""
    numbers = [number for number, piece in enumerate(pieces(memory.places)) if piece.path == path and not piece.removal]
    for number in reversed(numbers):
        yield _version(memory, number)


def _version(memory: Memory, number: int) -> _Version:
    path, first, after = memory.places.documents[number]
    starts = memory.places.line_starts(number)
    text = memory.engine.tokenizer.decode(memory.sequence.token_range(first, after).tolist())
    edges = [*starts[1:].tolist(), max(len(text), int(starts[-1]))]
    lines = [text[a:b].rstrip("\r\n") for a, b in pairwise(edges)]
    piece, body = latest_pieces(memory.places)[path], text[edges[0] :]
    outdated = piece.removal or (piece.first, piece.after) != (first, after)
    return _Version(number, path, body, lines, outdated)


def _told(memory: Memory, version: _Version, first: int, last: int) -> Json:
    last = min(last, first + MOST_LINES - 1, len(version.lines))
    _, begins, after = memory.places.documents[version.number]
    return {
        "object": "memory.source",
        "name": memory.name,
        "path": version.path,
        "sha256": version.digest,
        "outdated": version.outdated,
        "stale": freshness(memory, version.path)["stale"],
        "tokens": [begins, after],
        "total_lines": len(version.lines),
        "first_line": first,
        "lines": version.lines[first - 1 : last],
        "token_line": None,
    }
