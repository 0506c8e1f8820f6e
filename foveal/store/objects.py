"""The objects of a store as bytes: node, tail, context. The layouts stand in docs/store.md.

It imports no arrays, so that commands which only look at a store start at once. `arrays` has the rest.
"""

from __future__ import annotations

import datetime
import json
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import safetensors

from foveal.config import PAGE_TOKENS
from foveal.store import schema
from foveal.store.errors import StoreError
from foveal.store.files import Buffer
from foveal.store.hashes import DIGEST_BYTES, NAME_BYTES
from foveal.store.schema import CONTEXT_VERSION, RecordError

_NODE = struct.Struct(f"<{NAME_BYTES}s{NAME_BYTES}s{DIGEST_BYTES}sQ")
_TAIL = struct.Struct(f"<{NAME_BYTES}s{NAME_BYTES}sQQQ")


@dataclass(frozen=True)
class Node:
    """A page in the tree: `parent` is the key before (or the root's name), `digest` the checksum of the page's bytes,
    `position` the tokens up to its end, `tokens` 256 int32 as bytes."""

    parent: bytes
    name: bytes
    digest: bytes
    position: int
    tokens: bytes

    def to_bytes(self) -> bytes:
        return _NODE.pack(self.parent, self.name, self.digest, self.position) + self.tokens

    @staticmethod
    def parent_in(data: Buffer) -> bytes:
        """The parent in a node's bytes, of which nothing is verified."""
        return bytes(data[:NAME_BYTES])

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self | None:
        """None when it is not one."""
        if len(data) != _NODE.size + 4 * PAGE_TOKENS:
            return None
        parent, name, digest, position = _NODE.unpack_from(data)
        return cls(parent, name, digest, position, bytes(data[_NODE.size :]))


@dataclass(frozen=True)
class StoredTail:
    """A tail behind the page `node` (a key, or the root's name) and the tokens `rest` (int32 as bytes, fewer than 256),
    which its `name` stands for.

    `open_page` is the open page's bytes, empty at a multiple of 256; `tensors` the named tensors of `cache.Tail` as
    safetensors.
    """

    name: bytes
    node: bytes
    position: int
    rest: bytes
    open_page: Buffer
    tensors: bytes

    def to_bytes(self) -> bytes:
        head = _TAIL.pack(self.name, self.node, self.position, len(self.rest), len(self.open_page))
        return b"".join([head, self.rest, self.open_page, self.tensors])

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self | None:
        """None when it is not one."""
        if len(data) < _TAIL.size:
            return None
        name, node, position, rest, page = _TAIL.unpack_from(data)
        start = _TAIL.size + rest
        if rest != 4 * (position % PAGE_TOKENS) or start + page > len(data):
            return None
        tensors = bytes(data[start + page :])
        try:
            safetensors.deserialize(tensors)
        except (safetensors.SafetensorError, ValueError):
            return None
        return cls(
            name, node, position, bytes(data[_TAIL.size : start]), bytearray(data[start : start + page]), tensors
        )


def tail_position(data: Buffer) -> tuple[bytes, bytes, int] | None:
    """Name, node and position of a tail, without its tensors."""
    if len(data) < _TAIL.size:
        return None
    name, node, position, _, _ = _TAIL.unpack_from(data)
    return name, node, position


@dataclass(frozen=True)
class Context:
    """A named context: what it is made of, and what is known about it.

    `head` is the key of its last full page, or the root's name; `rest` the tokens behind that; `tails` (position, key)
    of the tails it keeps, by position; `maps` (tokens up to its end, key) of its source map's parts. `parent` and
    `forked_at` say what it was forked from, and where. `facts` is whatever the owner adds, in JSON's types.
    `keeps_tails` is off when it is always to be run again from its tokens.
    `origin` says who computed its pages and tails: "" this machine (or whom it was told to trust), else the hash of the
    file they were imported from, in hexadecimal digits. Their names derive from it: they serve this context and its
    forks, and nothing else.
    """

    name: str
    tenant: bytes
    fingerprint: Mapping[str, str]
    length: int
    head: bytes
    rest: tuple[int, ...] = ()
    tails: tuple[tuple[int, bytes], ...] = ()
    maps: tuple[tuple[int, bytes], ...] = ()
    created: str = ""
    saved: str = ""
    parent: str = ""
    forked_at: int = 0
    keeps_tails: bool = True
    pinned: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def pages(self) -> int:
        """Full pages."""
        return self.length // PAGE_TOKENS

    def replace(self, **changes: Any) -> Context:
        return replace(self, **changes)

    def to_bytes(self) -> bytes:
        """Raises `StoreError`, naming the field, when it holds what no record may (`foveal.store.schema`)."""
        return self._to_bytes(schema.check_stored)

    def to_export(self) -> bytes:
        """The record that an exported file begins with, without keys and without what concerns this store only. Raises
        `StoreError`, naming the field, when a file must not bring it."""
        bare = self.replace(tenant=b"", head=b"", tails=(), maps=(), parent="", origin="")
        return bare._to_bytes(schema.check_exported)

    def _to_bytes(self, check: Callable[[Mapping[str, Any]], None]) -> bytes:
        data = {"version": CONTEXT_VERSION} | {item.name: _plain(getattr(self, item.name)) for item in fields(self)}
        if not self.origin:
            del data["origin"]  # the record is then one that versions without this field read
        try:
            check(data)
            return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"what is said of memory {self.name!r} does not fit into its record: {error}") from error

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self | None:
        """None when it is not one that this version reads."""
        try:
            found = schema.parse(data)
            schema.check_stored(found)
        except RecordError:
            return None
        return cls._of(found)

    @classmethod
    def from_export(cls, data: bytes) -> Self:
        """What `to_export` gave. Raises `RecordError`, naming the field that does not fit."""
        return cls._of(schema.parse_exported(data))

    @classmethod
    def _of(cls, record: dict[str, Any]) -> Self:
        """`record` was checked."""
        known = {key: value for key, value in record.items() if key != "version"}
        known |= {name: bytes.fromhex(record.get(name, "")) for name in ("tenant", "head")}
        known["rest"] = tuple(record.get("rest", ()))
        for kept in ("tails", "maps"):
            known[kept] = tuple((position, bytes.fromhex(key)) for position, key in record.get(kept, ()))
        return cls(**known)


def _plain(value: Any) -> Any:
    """Bytes as hexadecimal digits, on their own or with a position."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return [(position, key.hex()) for position, key in value]
    return value


def now() -> str:
    """This moment, as a context states when it was created and saved."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def are_tokens(data: Buffer) -> bool:
    """Whether these int32 are ids: none of them is negative."""
    return min(array("i", bytes(data)), default=0) >= 0


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian int32."""
    return struct.pack(f"<{len(tokens)}i", *tokens)


def unpack_tokens(data: Buffer) -> tuple[int, ...]:
    """The inverse of `pack_tokens`."""
    return struct.unpack(f"<{len(data) // 4}i", data)
