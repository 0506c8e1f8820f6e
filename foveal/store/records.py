"""A record: one object in a pack, with a header that says what it is and checksums over all of it.

Records describe themselves. Packs alone, without the index, say everything there is to know, so
the index can be made again from them; and a piece of a pack that does not hold exactly the record that is looked for
is a miss, whatever it holds. The bytes stand in docs/store.md.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from foveal.store.cipher import NONCE_BYTES, Cipher
from foveal.store.files import Buffer
from foveal.store.hashes import DIGEST_BYTES, NAME_BYTES, checksum

RECORD_MAGIC = b"FovealR1"
HEADER_BYTES = 128
ALIGN = 64
"""Records begin at multiples of this, so that pages can be used where they lie."""

_HEADER = struct.Struct(f"<8sBB6xQQ{NAME_BYTES}s{DIGEST_BYTES}s{NONCE_BYTES}s20x")
_SEALED = 1


class Kind(enum.IntEnum):
    """What a record is. The numbers are on disk."""

    NODE = 1
    """A page's tokens and its place in the tree."""
    PAGE = 2
    """A page's bytes; its key is its node's."""
    TAIL = 3
    MAP = 4
    """A part of a source map."""
    CONTEXT = 5
    GONE = 6
    """Says that a context was deleted."""


SAID = {
    Kind.NODE: "tokens",
    Kind.PAGE: "page",
    Kind.TAIL: "tail",
    Kind.MAP: "source map",
    Kind.CONTEXT: "record",
    Kind.GONE: "record",
}
"""What a record is called in messages."""

_KINDS = {int(kind): kind for kind in Kind}


class Extent(NamedTuple):
    """Where a record lies: it takes `span` bytes of pack number `pack` from `offset` on."""

    pack: int
    offset: int
    span: int


class Header(NamedTuple):
    """`serial` numbers the transactions of a store; `size` is the payload's as it lies there, `digest` its checksum."""

    kind: Kind
    sealed: bool
    size: int
    serial: int
    key: bytes
    digest: bytes
    nonce: bytes

    def to_bytes(self) -> bytes:
        flags = _SEALED if self.sealed else 0
        head = _HEADER.pack(RECORD_MAGIC, self.kind, flags, self.size, self.serial, self.key, self.digest, self.nonce)
        return head + checksum(head)

    @classmethod
    def parse(cls, data: Buffer) -> Header | None:
        """The header in the first 128 bytes of `data`, or None when they are not one, bit for bit."""
        head = bytes(data[: _HEADER.size])
        if len(data) < HEADER_BYTES or not head.startswith(RECORD_MAGIC):
            return None
        if checksum(head) != bytes(data[_HEADER.size : HEADER_BYTES]):
            return None
        _, kind, flags, size, serial, key, digest, nonce = _HEADER.unpack(head)
        if kind not in _KINDS:
            return None
        return cls(_KINDS[kind], flags == _SEALED, size, serial, key, digest, nonce)

    @property
    def span(self) -> int:
        """Bytes the record takes, padding included."""
        return span_of(self.size)


def key_in(raw: Buffer) -> bytes:
    """The key in a record's bytes, of which nothing is verified."""
    return bytes(raw[24 + 8 : 24 + 8 + NAME_BYTES])


def serial_in(raw: Buffer) -> int:
    """The serial in a record's bytes, of which nothing is verified."""
    return int.from_bytes(raw[24:32], "little")


def size_in(raw: Buffer) -> int:
    """The bytes of the payload as a record's bytes say, of which nothing is verified."""
    return int.from_bytes(raw[16:24], "little")


def span_of(size: int) -> int:
    """Bytes that a record with a payload of `size` stored bytes takes."""
    return -(-(HEADER_BYTES + size) // ALIGN) * ALIGN


def make(
    kind: Kind, key: bytes, payload: Buffer, serial: int, cipher: Cipher | None, digest: bytes = b""
) -> list[Buffer]:
    """A record in pieces: header, payload, padding. `digest` may give the checksum of a plain payload."""
    nonce = bytes(NONCE_BYTES)
    if cipher is not None:
        nonce, payload = cipher.seal(memoryview(payload), _about(kind, key, serial))
        digest = b""
    header = Header(kind, cipher is not None, len(payload), serial, key, digest or checksum(payload), nonce)
    return [header.to_bytes(), payload, bytes(header.span - HEADER_BYTES - header.size)]


def open_payload(header: Header, stored: memoryview, cipher: Cipher | None) -> memoryview | None:
    """The verified plain payload, not copied unless it is encrypted; None when it is not what was written."""
    if checksum(stored) != header.digest:
        return None
    if not header.sealed:
        return stored
    if cipher is None:
        return None
    plain = cipher.open(header.nonce, stored, _about(header.kind, header.key, header.serial))
    return None if plain is None else memoryview(plain)


def parse(raw: Buffer, cipher: Cipher | None) -> tuple[Header, memoryview] | None:
    """Header and verified plain payload of a record's bytes; None when they are not one."""
    header = Header.parse(memoryview(raw)[:HEADER_BYTES])
    stored = memoryview(raw)[HEADER_BYTES : HEADER_BYTES + (header.size if header is not None else 0)]
    payload = None if header is None else open_payload(header, stored, cipher)
    return None if header is None or payload is None else (header, payload)


def _about(kind: Kind, key: bytes, serial: int) -> bytes:
    return struct.pack("<BQ", kind, serial) + key
