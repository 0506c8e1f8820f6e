"""Objects and the records of contexts, read and verified, from their second copy if need be.

What was read from its second copy, or is there only once, is noted (`foveal.store.repairs.Hurt`): the next transaction
makes it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from foveal.store import records
from foveal.store.cipher import Cipher
from foveal.store.errors import StoreError
from foveal.store.files import Buffer
from foveal.store.hashes import Names
from foveal.store.objects import Context
from foveal.store.pack_reader import PackReader
from foveal.store.records import Kind
from foveal.store.repairs import Hurt
from foveal.store.rows import ContextRow, Entry


class ObjectReader:
    """Reads objects. `find` asks the index for the entry of a kind and key."""

    def __init__(self, packs: PackReader, hurt: Hurt, find: Callable[[Kind, bytes], Entry | None]) -> None:
        self._packs, self._hurt, self._find = packs, hurt, find

    def read(self, entry: Entry) -> memoryview | None:
        """The verified payload of an object, from its copy if need be; None when neither is whole."""
        kind, extents = Kind(entry.kind), entry.extents
        for number, extent in enumerate(extents):
            found = self._packs.read(extent, kind, entry.key)
            if found is not None:
                if number or len(extents) < entry.copies:
                    self._hurt.add(kind, entry.key)
                return found
        return None

    def fetch(self, kind: Kind, key: bytes, entry: Entry | None = None) -> tuple[memoryview | None, Entry | None]:
        """The verified payload of the object `kind`, `key` and where it lies; None for what is not there, or not whole.

        `entry` is where it was last seen: a compaction may have moved it since.
        """
        seen: Entry | None = None
        entry = entry or self._find(kind, key)
        while entry is not None and entry != seen:
            payload = self.read(entry)
            if payload is not None:
                return payload, entry
            seen, entry = entry, self._find(kind, key)
        return None, entry


class ContextReader:
    """Reads the records of contexts."""

    def __init__(self, packs: PackReader, hurt: Hurt, cipher: Cipher | None) -> None:
        self._packs, self._hurt, self._cipher = packs, hurt, cipher
        self._last: tuple[bytes, Context | None] = (b"", None)
        """The record that was parsed last, and the context in it."""

    def read(self, row: ContextRow) -> Context:
        """The context of a row, from the index or from its pack. Raises `StoreError` when no copy is whole."""
        context = self.find(row)
        if context is not None:
            return context
        raise StoreError(f"the record of context {row.label.hex()[:12]} is damaged; `foveal verify` says more")

    def find(self, row: ContextRow) -> Context | None:
        """`read`; None when no copy is whole."""
        for number, raw in enumerate(self.copies(row)):
            context = self.parse(raw)
            if context is not None:
                if number or len(row.extents) < 2:
                    self._hurt.add(Kind.CONTEXT, row.label)
                return context
        return None

    def copies(self, row: ContextRow) -> Iterator[Buffer]:
        """All copies of a context's record, unverified: the index's, and those in packs when they are asked for."""
        yield row.record
        for extent in row.extents:
            raw = self._packs.raw(extent)
            if raw is not None:
                yield raw

    def parse(self, raw: Buffer) -> Context | None:
        """The context in a record, if it is one, whole, and under its own label."""
        known, last = self._last
        if known == raw:  # a long record takes a while, and a fork looks at one three times
            return last
        context = self._parse(raw)
        self._last = bytes(raw), context
        return context

    def _parse(self, raw: Buffer) -> Context | None:
        found = records.parse(raw, self._cipher)
        if found is None or found[0].kind is not Kind.CONTEXT:
            return None
        context = Context.from_bytes(found[1])
        right = context is not None and Names.of(context.tenant).label(context.name) == found[0].key
        return context if right else None
