"""A context as one file: exported from one store, imported into another.

What is special here: the file is a stream. It is written and read front to back, every part carries a checksum, and the
last one a BLAKE2b of all before it; an import is one transaction, so a file of which anything is off leaves no trace.
Names do not travel, they are a secret of their store: the file holds tokens and bytes, and the importing store names
them anew. The file is not encrypted, whatever the store is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from typing import BinaryIO

from foveal.config import PAGE_TOKENS
from foveal.engine import Fingerprint
from foveal.memory.errors import StoreError
from foveal.memory.store import maps
from foveal.memory.store.chain import Chain, read_chain
from foveal.memory.store.contexts import on_current, read_parts
from foveal.memory.store.files import Buffer
from foveal.memory.store.names import checksum
from foveal.memory.store.objects import Context, Node, StoredTail
from foveal.memory.store.records import Kind
from foveal.memory.store.store import Store, now
from foveal.memory.store.writer import Writer

FILE_MAGIC = b"FovealEx"
FILE_VERSION = 1
_START = struct.Struct("<8sI4x")
_FRAME = struct.Struct("<4sIQ16s")
"""What it is, zero, bytes of the payload, checksum of all of these and the payload."""
_BLOCK = 1 << 20
_LARGEST = 1 << 34


class TransferError(StoreError):
    """A file cannot be imported; nothing was."""


def export(store: Store, name: str, file: BinaryIO) -> int:
    """Write context `name` to `file`; returns the bytes written. Pages that were evicted travel as tokens only.

    Raises `MemoryNotFound`, `CorruptMemory` when its tokens or its source map are lost, `OSError`.
    """
    context, chain, parts = on_current(store, name, partial(_whole, store))
    digest, size = blake2b(digest_size=32), 0
    for piece in _pieces(store, context, chain, parts):
        file.write(piece)
        digest.update(piece)
        size += len(piece)
    for piece in _frame(b"END.", digest.digest()):
        file.write(piece)
        size += len(piece)
    file.flush()
    return size


def _whole(store: Store, context: Context) -> tuple[Context, Chain, list[bytes]]:
    """A context with its tokens and its source map, which must be there; all else is computed again where it is not."""
    chain = read_chain(store, context, Fingerprint.from_dict(context.fingerprint).digest)
    parts = read_parts(store, context)
    if parts:  # what lies behind the tokens does not leave the store
        start = context.maps[-2][0] if len(context.maps) > 1 else 0
        parts[-1] = maps.cut(parts[-1], context.length - start)
    return context, chain, parts


def _pieces(store: Store, context: Context, chain: Chain, parts: list[bytes]) -> Iterator[Buffer]:
    yield _START.pack(FILE_MAGIC, FILE_VERSION)
    yield from _frame(b"CTXT", context.replace(tenant=b"", head=b"", tails=(), maps=(), parent="").to_bytes())
    for node, entry in zip(chain.nodes, chain.pages, strict=True):
        page = None
        if entry is not None:
            page, _ = store.fetch(Kind.PAGE, entry.key, entry)
        yield from _frame(b"PAGE", node.digest, node.tokens, page or b"")
    for _, key in context.tails:
        data, _ = store.fetch(Kind.TAIL, key)
        if data is not None:
            yield from _frame(b"TAIL", data)
    for (end, _), part in zip(context.maps, parts, strict=True):
        yield from _frame(b"SMAP", struct.pack("<Q", end), part)


def _frame(what: bytes, *payload: Buffer) -> Iterator[Buffer]:
    size = sum(len(piece) for piece in payload)
    about = struct.pack("<4sIQ", what, 0, size)
    yield about + checksum(about, *payload)
    yield from payload


# ---------------------------------------------------------------------- import


def import_file(store: Store, file: BinaryIO, name: str | None = None) -> Context:
    """Enter the context in `file`, under `name` or its own. Raises `TransferError` when a single bit is off, when the
    file has another version, or when there is a context of that name."""
    try:
        return store.transact(lambda tx: _Import(store, tx, file).run(name))
    except (struct.error, ValueError) as error:
        raise TransferError(f"the file is damaged: {error}") from error


class _Import:
    def __init__(self, store: Store, tx: Writer, file: BinaryIO) -> None:
        self.store, self.tx, self.file = store, tx, file
        self.digest = blake2b(digest_size=32)
        self.keys: list[bytes] = []
        self.numbers: list[int] = [0]
        self.tails: list[tuple[int, bytes]] = []
        self.maps: list[tuple[int, bytes]] = []
        self.objects: list[int] = []

    def run(self, name: str | None) -> Context:
        magic, version = _START.unpack(self._take(_START.size))
        if magic != FILE_MAGIC:
            raise TransferError("this is not an exported memory")
        if version != FILE_VERSION:
            raise TransferError(
                f"the file has version {version} and this version reads {FILE_VERSION}; export it again with this one"
            )
        frames = self._frames()
        what, payload = next(frames)
        context = Context.from_bytes(payload) if what == b"CTXT" else None
        if context is None:
            raise TransferError("the file does not say what it holds")
        context = context.replace(name=name or context.name, tenant=self.tx.names.tenant)
        if self.tx.index.context(self.tx.names.label(context.name)) is not None:
            raise TransferError(f"there is a memory {context.name!r} already; give another name, or delete it first")
        self.root = self.tx.names.root(Fingerprint.from_dict(context.fingerprint).digest)
        self.name = self.root
        for what, payload in frames:
            self._enter(context, what, payload)
        if len(self.keys) != context.pages or len(context.rest) != context.length % PAGE_TOKENS:
            raise TransferError("the file does not hold as many pages as it says")
        objects = [*self.objects, *([self.numbers[-1]] if self.keys else [])]
        context = context.replace(
            head=self.keys[-1] if self.keys else self.root,
            tails=tuple(sorted(self.tails)),
            maps=tuple(self.maps),
            saved=now(),
            pinned=False,
        )
        self.tx.put_context(context, objects)
        return context

    def _enter(self, context: Context, what: bytes, payload: bytes) -> None:
        if what == b"PAGE":
            self._page(payload)
        elif what == b"TAIL":
            self._tail(context, payload)
        elif what == b"SMAP":
            (end,), data = struct.unpack("<Q", payload[:8]), payload[8:]
            key = self.tx.names.map_key(data)
            self.objects.append(self.tx.put(Kind.MAP, key, data, copies=2))
            self.maps.append((end, key))
        else:
            raise TransferError(f"the file holds a part that is unknown ({what!r})")

    def _page(self, payload: bytes) -> None:
        digest, tokens, page = payload[:16], payload[16 : 16 + 4 * PAGE_TOKENS], payload[16 + 4 * PAGE_TOKENS :]
        if page and checksum(page) != digest:
            raise TransferError("a page is not what it says")
        position = (len(self.keys) + 1) * PAGE_TOKENS
        parent = self.keys[-1] if self.keys else self.root
        self.name = self.tx.names.page_name(self.name, tokens)
        key = self.tx.names.node_key(parent, self.name, digest)
        node = Node(parent, self.name, digest, position, tokens)
        number = self.tx.put(
            Kind.NODE, key, node.to_bytes(), copies=2, name=self.name, parent=self.numbers[-1], position=position
        )
        if page:
            self.tx.put(Kind.PAGE, key, page, digest=digest, position=position)
        self.keys.append(key)
        self.numbers.append(number)

    def _tail(self, context: Context, payload: bytes) -> None:
        tail = StoredTail.from_bytes(payload)
        full = tail.position // PAGE_TOKENS if tail is not None else 0
        if tail is None or tail.position > context.length or full > len(self.keys):
            raise TransferError("a tail is not what it says")
        node = self.keys[full - 1] if full else self.root
        place = self.tx.names.tail_place(node, tail.rest)
        data = StoredTail(place, node, tail.position, tail.rest, tail.open_page, tail.tensors).to_bytes()
        key = self.tx.names.tail_key(place, checksum(data))
        number = self.tx.put(Kind.TAIL, key, data, name=place, parent=self.numbers[full], position=tail.position)
        self.objects.append(number)
        self.tails.append((tail.position, key))

    # ------------------------------------------------------------------ the stream

    def _frames(self) -> Iterator[tuple[bytes, bytes]]:
        """All parts but the last, which proves the whole."""
        while True:
            expected = self.digest.digest()
            head = self._take(_FRAME.size)
            what, zero, size, found = _FRAME.unpack(head)
            if zero or size > _LARGEST:
                raise TransferError("the file is damaged: a part has an impossible size")
            payload = self._take(size)
            if checksum(head[:16], payload) != found:
                raise TransferError("the file is damaged: the checksum of a part is wrong")
            if what != b"END.":
                yield what, payload
                continue
            if payload != expected:
                raise TransferError("the file is damaged: its checksum is wrong")
            if self.file.read(1):
                raise TransferError("the file goes on behind its end")
            return

    def _take(self, size: int) -> bytes:
        pieces = []
        while size > 0:
            piece = self.file.read(min(size, _BLOCK))
            if not piece:
                raise TransferError("the file ends too early")
            pieces.append(piece)
            self.digest.update(piece)
            size -= len(piece)
        return b"".join(pieces)
