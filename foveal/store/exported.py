"""The file that a context is exported to: parts in a fixed order, each with its size and checksum.

It is written and read front to back, and its last part is a BLAKE2b of all before it. Whoever wrote it is a stranger:
a size is held against what may stand there, and against what is left of the file, before a byte of it is read.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Protocol

from foveal.config import PAGE_TOKENS
from foveal.store.cipher import Cipher
from foveal.store.errors import StoreError
from foveal.store.files import Buffer
from foveal.store.hashes import checksum
from foveal.store.schema_words import shown

FILE_MAGIC = b"FovealEx"
FILE_VERSION = 1
START = struct.Struct("<8sI4x")
FRAME = struct.Struct("<4sIQ16s")
"""What it is, zero, bytes of the payload, checksum of all of these and the payload."""
CONTEXT, PAGE, TAIL, MAP, END = b"CTXT", b"PAGE", b"TAIL", b"SMAP", b"END."
END_BYTES = 32
TOKEN_BYTES = 4 * PAGE_TOKENS
PAGE_HEAD = 16 + TOKEN_BYTES
"""Bytes of a page's part without the page: its checksum and tokens."""
_BLOCK = 1 << 20
_MOST_SAID = 500


class TransferError(StoreError):
    """A file cannot be imported; nothing was. The message is one short line, whatever the file says."""

    code = "invalid_request"

    def __init__(self, message: str) -> None:
        super().__init__(shown(message, _MOST_SAID))


def frame(what: bytes, *payload: Buffer) -> Iterator[Buffer]:
    """One part of the file, in pieces."""
    size = sum(len(piece) for piece in payload)
    about = struct.pack("<4sIQ", what, 0, size)
    yield about + checksum(about, *payload)
    yield from payload


class Readable(Protocol):
    """What parts are read from."""

    def read(self, size: int, /) -> bytes: ...


class Reader:
    """The parts of a file, front to back. `left`: bytes of the file from here on; None where nobody knows (a pipe).

    `digest` is, after the last part, the hash that it holds: the file's own name.
    """

    def __init__(self, file: Readable, left: int | None) -> None:
        self._file, self.left = file, left
        self._hash = blake2b(digest_size=END_BYTES)
        self.digest = b""

    def begin(self) -> None:
        """Raises `TransferError` when this is no exported memory, or one of another version."""
        magic, version = START.unpack(self._take(START.size))
        if magic != FILE_MAGIC:
            raise TransferError("the file is not an exported memory (`foveal export` writes them)")
        if version != FILE_VERSION:
            raise TransferError(
                f"the file has version {version} and this version reads {FILE_VERSION}; export it again with this one"
            )

    def next(self, largest: Mapping[bytes, int]) -> tuple[bytes, bytes]:
        """What the next part is, and its verified payload. `largest`: the parts that may stand here, and the most bytes
        of each. The last part must be the end of the file."""
        expected = self._hash.digest()
        head = self._take(FRAME.size)
        what, zero, size, found = FRAME.unpack(head)
        if what not in largest:
            raise TransferError(f"the file is damaged: no part {ascii(what)[1:]} may stand there")
        if zero or size > largest[what]:
            raise TransferError("the file is damaged: a part has an impossible size")
        payload = self._take(size)
        if checksum(head[:16], payload) != found:
            raise TransferError("the file is damaged: the checksum of a part is wrong")
        if what == END:
            if payload != expected:
                raise TransferError("the file is damaged: its checksum is wrong")
            if self._file.read(1):
                raise TransferError("the file goes on behind its end")
            self.digest = expected
        return what, payload

    def _take(self, size: int) -> bytes:
        if self.left is not None and size > self.left:
            raise TransferError("the file ends too early")
        pieces, due = [], size
        while due > 0:
            piece = self._file.read(min(due, _BLOCK))
            if not piece:
                raise TransferError("the file ends too early")
            pieces.append(piece)
            self._hash.update(piece)
            due -= len(piece)
        if self.left is not None:
            self.left -= size
        return b"".join(pieces)


# ---------------------------------------------------------------------- reading it twice


class Twice:
    """A file that is read twice: to check it, and to enter it. What comes through a pipe is kept meanwhile in a file
    without a name in `folder`, encrypted when the store is. Close it."""

    def __init__(self, file: BinaryIO, folder: Path, cipher: Cipher | None) -> None:
        self._file = file
        self._start = _position(file)
        self._spool = _Spool(folder, cipher) if self._start is None else None

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()

    @property
    def kept(self) -> int:
        """Bytes of a pipe that were kept, or were to be."""
        return self._spool.size if self._spool is not None else 0

    def first(self) -> Reader:
        """For the first time, from where the file stands."""
        if self._spool is not None:
            return Reader(_Tee(self._file, self._spool), None)
        return self.again()

    def again(self) -> Reader:
        """From there once more; may be called again and again."""
        if self._spool is not None:
            return Reader(self._spool.reading(), self._spool.size)
        assert self._start is not None
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(self._start)
        return Reader(self._file, end - self._start)


def _position(file: BinaryIO) -> int | None:
    """Where a file stands that can be read again; None for pipes and devices."""
    try:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, AttributeError):  # it lies in memory
        regular = True
    try:
        return file.tell() if regular and file.seekable() else None
    except OSError:
        return None


class _Tee:
    """A stream that is kept while it is read."""

    def __init__(self, file: BinaryIO, spool: _Spool) -> None:
        self._file, self._spool = file, spool

    def read(self, size: int, /) -> bytes:
        piece = self._file.read(size)
        self._spool.write(piece)
        return piece


class _Spool:
    """Bytes kept in a file without a name. With a cipher each piece is sealed on its own."""

    def __init__(self, folder: Path, cipher: Cipher | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `close` closes it
        self._cipher, self.size = cipher, 0
        self._pieces: list[tuple[bytes, int]] = []
        """Of sealed ones: nonce and size."""

    def close(self) -> None:
        self._file.close()

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._cipher is None:
            self._file.write(piece)
        elif piece:
            nonce, sealed = self._cipher.seal(memoryview(piece), self._about())
            self._pieces.append((nonce, len(sealed)))
            self._file.write(sealed)

    def reading(self) -> Readable:
        self._file.seek(0)
        return self._file if self._cipher is None else _Stream(self._opened(self._cipher))

    def _about(self) -> bytes:
        return b"foveal-spool" + len(self._pieces).to_bytes(8, "little")

    def _opened(self, cipher: Cipher) -> Iterator[bytes]:
        for number, (nonce, size) in enumerate(self._pieces):
            about = b"foveal-spool" + number.to_bytes(8, "little")
            plain = cipher.open(nonce, memoryview(self._file.read(size)), about)
            if plain is None:
                raise TransferError("what was kept of the pipe is not what was written; try again")
            yield plain


class _Stream:
    """Pieces of any size as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int, /) -> bytes:
        while not self._rest and (piece := next(self._pieces, None)) is not None:
            self._rest = piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
