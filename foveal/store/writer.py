"""What a transaction of a store can do; `Store.transact` makes it.

Everything is put at most once. An object that the store has is found by its key: its number is all there is to have.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from foveal.store import records
from foveal.store.errors import MemoryNotFound
from foveal.store.files import Buffer
from foveal.store.hashes import Names
from foveal.store.index import Index
from foveal.store.objects import Context
from foveal.store.records import Extent, Kind
from foveal.store.rows import ContextRow, Entry

if TYPE_CHECKING:
    from foveal.cache import Page
    from foveal.store.store import Store


class Writer:
    """One transaction, as its work sees it."""

    def __init__(self, store: Store, index: Index, serial: int) -> None:
        self.store, self.index, self.serial = store, index, serial
        self.packs = store.packs
        self.names = store.names
        self.unlink: list[int] = []
        """Packs to delete once this is committed."""
        self.changed = False
        self.learned: list[tuple[Page, bytes, bytes, bytes]] = []
        """Pages in memory, with key, name and root of their nodes: known to the store once this is committed."""

    def put(
        self,
        kind: Kind,
        key: bytes,
        payload: Buffer,
        *,
        copies: int = 1,
        digest: bytes = b"",
        name: bytes = b"",
        parent: int = 0,
        position: int = 0,
    ) -> int:
        """The number of the object `kind`, `key`, written if the store has not got it."""
        known = self.index.objects.find(kind, key)
        if known is not None:
            if not known.pack:  # it was quarantined
                self.rewrite(known, payload, copies=copies)
            return known.id
        self.changed = True
        extents = [self.packs.append(kind, key, payload, self.serial, digest)]
        if copies == 2:
            # With a nonce of its own an encrypted copy differs; both are whole records.
            extents.append(self.packs.append(kind, key, payload, self.serial, digest))
        second = extents[1] if copies == 2 else None
        return self.index.objects.add(kind, key, extents[0], second, name=name, parent=parent, position=position)

    def put_context(self, context: Context, objects: Iterable[int]) -> None:
        """Enter `context` in place of an older one of its name. `objects`: the numbers of all it uses."""
        self.changed = True
        label = Names.of(context.tenant).label(context.name)
        raw = b"".join(records.make(Kind.CONTEXT, label, context.to_bytes(), self.serial, self.store.cipher))
        extents = [self.packs.copy(raw), self.packs.copy(raw)]
        self.index.contexts.put(label, context.tenant, self.serial, raw, extents, time.time(), objects)

    def rewrite(self, entry: Entry, payload: Buffer, *, copies: int) -> None:
        """Write an object again, with the bytes that its key says, because its record was damaged."""
        self.changed = True
        kind = Kind(entry.kind)
        extents = [self.packs.append(kind, entry.key, payload, self.serial) for _ in range(copies)]
        self.index.objects.move(entry.id, extents[0], extents[1] if copies == 2 else None)

    def drop_context(self, name: str) -> None:
        """Delete a context. Raises `MemoryNotFound`."""
        label = self.names.label(name)
        if self.index.contexts.seek(label) is None:
            raise MemoryNotFound(
                f"there is no memory {name!r} in {self.store.folder}; `foveal ls` lists those there are"
            )
        self.changed = True
        self.index.contexts.drop(label)
        self.put_gone(label)

    def put_gone(self, label: bytes) -> None:
        """Say in the packs that there is no context of this label any more."""
        extents = [self.write(Kind.GONE, label, b"") for _ in range(2)]
        self.index.contexts.put_gone(label, self.serial, extents)

    def write(self, kind: Kind, key: bytes, payload: Buffer, serial: int | None = None) -> Extent:
        """Write a record; where it lies. `serial`: that of the transaction it belongs to (default: this one)."""
        self.changed = True
        return self.packs.append(kind, key, payload, self.serial if serial is None else serial)

    def uses(self, context: Context, like: ContextRow | None = None) -> list[int]:
        """The numbers of those objects of a context that are in the store. `like`: a context that has most of them, so
        that one question finds these."""
        wanted = [(Kind.NODE, context.head)] if context.pages else []
        wanted += [(Kind.TAIL, key) for _, key in context.tails] + [(Kind.MAP, key) for _, key in context.maps]
        known = self.index.references.keys_used_by(like.id) if like is not None else {}
        found = [known.get((int(kind), key)) or self._number(kind, key) for kind, key in wanted]
        return [number for number in found if number]

    def _number(self, kind: Kind, key: bytes) -> int:
        entry = self.index.objects.find(kind, key)
        return 0 if entry is None else entry.id
