"""A context as one file: exported from one store, imported into another.

Names do not travel, they are a secret of their store: the file holds tokens and bytes, and the importing store names
them anew. The file is not encrypted, whatever the store is.

An import reads the file twice: the first time all of it is checked (`foveal.store.checking`), the second time it
is entered, in one transaction. The pages of a file are a stranger's claim about what its tokens leave. They get names
of their own (`Context.origin`), so that nothing but the imported context and its forks ever uses them, until they were
computed again here (`foveal.store.recompute`), or unless one says that the file is to be trusted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from foveal.checkpoint.identity import Fingerprint
from foveal.config import PAGE_TOKENS
from foveal.store import exported, maps
from foveal.store.checking import Checked, Checking
from foveal.store.context_view import ContextView
from foveal.store.contexts import on_current
from foveal.store.errors import StoreError
from foveal.store.exported import FILE_MAGIC, FILE_VERSION, START, TransferError, Twice, frame
from foveal.store.files import Buffer
from foveal.store.hashes import checksum
from foveal.store.index_file import is_full
from foveal.store.objects import Context, Node, StoredTail, now
from foveal.store.records import Kind
from foveal.store.schema import check_name
from foveal.store.store import Store
from foveal.store.writer import Writer


def export(store: Store, name: str, file: BinaryIO) -> int:
    """Write context `name` to `file`; returns the bytes written. Pages that were evicted travel as tokens only.

    Raises `MemoryNotFound`, `CorruptMemory` when its tokens or its source map are lost, `StoreError` when its name or
    what is said of it could not be imported, `OSError`.
    """
    view, parts = on_current(store, name, partial(_whole, store))
    digest, size = blake2b(digest_size=exported.END_BYTES), 0
    for piece in _pieces(view, parts):
        file.write(piece)
        digest.update(piece)
        size += len(piece)
    for piece in frame(exported.END, digest.digest()):
        file.write(piece)
        size += len(piece)
    file.flush()
    return size


def _whole(store: Store, context: Context) -> tuple[ContextView, list[bytes]]:
    """A context with its tokens and its source map, which must be there; all else is computed again where it is not."""
    view = ContextView(store, context, Fingerprint.from_dict(context.fingerprint).digest)
    parts = view.map_parts()
    if parts:  # what lies behind the tokens does not leave the store
        start = context.maps[-2][0] if len(context.maps) > 1 else 0
        parts[-1] = maps.cut(parts[-1], context.length - start)
    return view, parts


def _pieces(view: ContextView, parts: list[bytes]) -> Iterator[Buffer]:
    context = view.context
    yield START.pack(FILE_MAGIC, FILE_VERSION)
    yield from frame(exported.CONTEXT, context.to_export())
    for number, node in enumerate(view.chain.nodes):
        page, _ = view.stored_page(number)
        yield from frame(exported.PAGE, node.digest, node.tokens, page or b"")
    for position, _ in context.tails:
        data = view.stored_tail(position)
        if data is not None:
            yield from frame(exported.TAIL, data)
    for (end, _), part in zip(context.maps, parts, strict=True):
        yield from frame(exported.MAP, struct.pack("<Q", end), part)


# ---------------------------------------------------------------------- import


def import_file(
    store: Store,
    file: BinaryIO,
    name: str | None = None,
    *,
    trust: bool = False,
    source: Sequence[str | Path] | None = None,
) -> Context:
    """Enter the context in `file`, under `name` or its own.

    Its pages serve it and its forks and nothing else, until they were computed again; with `trust` they are taken for
    what this machine computed itself. Where its source lies is another machine's path: it counts as not being here,
    unless `source` says where it is. Raises `InvalidName`; `TransferError`, saying what is wrong, when anything in the
    file is not as `export` writes it, when there is a context of that name, or no room; then nothing was changed.
    """
    if name is not None:
        check_name(name)
    store.check_writable()
    twice = Twice(file, store.folder, store.cipher)
    try:
        return _import(store, twice, name, trust, source)
    except OSError as error:
        if not is_full(error):
            raise
        raise TransferError(
            f"there is no room to keep what comes through the pipe, which is more than {twice.kept:,} bytes, in "
            f"{store.folder}; nothing was imported"
        ) from error
    finally:
        twice.close()


def _import(store: Store, twice: Twice, name: str | None, trust: bool, source: Sequence[str | Path] | None) -> Context:
    checked = Checking(twice.first()).run()
    context = checked.context.replace(
        name=name or checked.context.name,
        tenant=store.names.tenant,
        origin="" if trust else checked.digest.hex(),
        saved=now(),
        pinned=False,
        forked_at=0,
        facts=_with_source(checked.context.facts, source),
    )
    if not trust:
        _check_room(store, context, checked)
    try:
        return store.transact(lambda tx: _Entering(tx, context, checked, twice).run())
    except StoreError as error:
        if not is_full(error):
            raise
        raise _no_room(store, context, checked) from error


def _with_source(facts: Any, source: Sequence[str | Path] | None) -> dict[str, Any]:
    """`facts` with where the source lies: at the paths in `source`, or not on this machine. Raises `TransferError` for
    another number of paths than it was read from."""
    if "source" not in facts:
        return dict(facts)
    if not source:
        return {**facts, "source": {**facts["source"], "elsewhere": True}}
    read = len(facts["source"].get("paths", ())) or 1
    if len(source) != read:
        raise TransferError(f"the memory was read from {read} paths; give --source for each, in their order")
    paths = [str(Path(path).absolute()) for path in source]
    here = {"elsewhere": False, "source": ", ".join(paths), "paths": paths if len(paths) > 1 else []}
    return {**facts, "source": {**facts["source"], **here}}


def _check_room(store: Store, context: Context, checked: Checked) -> None:
    """Refuse before anything is written what cannot fit, unless the store may have it already."""
    if _free(store) >= checked.needed:
        return
    if not any(known.origin == context.origin for known in store.contexts() if isinstance(known, Context)):
        raise _no_room(store, context, checked)


def _free(store: Store) -> int:
    found = os.statvfs(store.folder)
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def _no_room(store: Store, context: Context, checked: Checked) -> TransferError:
    return TransferError(
        f"there is no room for {context.name}: it takes about {checked.needed:,} bytes in {store.folder}, and about "
        f"{_free(store):,} are free there; nothing was imported"
    )


class _Entering:
    """Enters a file that was checked. `run` may be done twice, in another transaction."""

    def __init__(self, tx: Writer, context: Context, checked: Checked, twice: Twice) -> None:
        self.tx, self.names, self.context, self.checked = tx, tx.names, context, checked
        self.reader = twice.again()
        self.root = self.name = self.names.root(Fingerprint.from_dict(context.fingerprint).digest, context.origin)
        self.keys: list[bytes] = []
        self.numbers: list[int] = [0]
        self.tails: list[tuple[int, bytes]] = []
        self.maps: list[tuple[int, bytes]] = []
        self.objects: list[int] = []

    def run(self) -> Context:
        context, tx = self.context, self.tx
        if tx.index.contexts.get(self.names.label(context.name)) is not None:
            raise TransferError(f"there is a memory {context.name!r} already; give another name, or delete it first")
        self.reader.begin()
        while (part := self.reader.next(self.checked.largest))[0] != exported.END:
            self._enter(*part)
        if self.reader.digest != self.checked.digest:
            raise TransferError("the file was changed while it was read; try again")
        objects = [*self.objects, *([self.numbers[-1]] if self.keys else [])]
        head = self.keys[-1] if self.keys else self.root
        context = context.replace(head=head, tails=tuple(self.tails), maps=tuple(self.maps))
        tx.put_context(context, objects)
        return context

    def _enter(self, what: bytes, payload: bytes) -> None:
        if what == exported.PAGE:
            self._page(payload)
        elif what == exported.TAIL:
            self._tail(payload)
        elif what == exported.MAP:
            (end,), data = struct.unpack("<Q", payload[:8]), payload[8:]
            key = self.names.map_key(data)
            self.objects.append(self.tx.put(Kind.MAP, key, data, copies=2))
            self.maps.append((end, key))

    def _page(self, payload: bytes) -> None:
        digest, tokens, page = payload[:16], payload[16 : exported.PAGE_HEAD], payload[exported.PAGE_HEAD :]
        position = (len(self.keys) + 1) * PAGE_TOKENS
        parent = self.keys[-1] if self.keys else self.root
        self.name = self.names.page_name(self.name, tokens)
        key = self.names.node_key(parent, self.name, digest)
        node = Node(parent, self.name, digest, position, tokens)
        number = self.tx.put(
            Kind.NODE, key, node.to_bytes(), copies=2, name=self.name, parent=self.numbers[-1], position=position
        )
        if page:
            self.tx.put(Kind.PAGE, key, page, digest=digest, position=position)
        self.keys.append(key)
        self.numbers.append(number)

    def _tail(self, payload: bytes) -> None:
        tail = StoredTail.from_bytes(payload)
        full = tail.position // PAGE_TOKENS if tail is not None else 0
        if tail is None or full > len(self.keys):
            raise TransferError("the file was changed while it was read; try again")
        node = self.keys[full - 1] if full else self.root
        name = self.names.tail_name(node, tail.rest)
        data = StoredTail(name, node, tail.position, tail.rest, tail.open_page, tail.tensors).to_bytes()
        key = self.names.tail_key(name, checksum(data))
        number = self.tx.put(Kind.TAIL, key, data, name=name, parent=self.numbers[full], position=tail.position)
        self.objects.append(number)
        self.tails.append((tail.position, key))


__all__ = ["TransferError", "export", "import_file"]
