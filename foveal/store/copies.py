"""What cannot be computed again is there twice: tokens, source maps, and the records of contexts and deletions.

One copy of two is enough to read by, and not enough to be left at that: whoever finds one damaged has the other written
again, here. Nothing that is about to be relied on, or given up, goes unchecked: `whole` reads every copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveal.store.files import Buffer
from foveal.store.objects import Context
from foveal.store.pack_reader import PackReader
from foveal.store.records import SAID, Extent, Kind
from foveal.store.rows import ContextRow, Entry, GoneRow
from foveal.store.writer import Writer


@dataclass(frozen=True)
class Copies:
    """The copies of a record: `good` where the bytes are as they were written, `bad` where they are not."""

    good: list[Extent]
    bad: list[Extent]


def whole(packs: PackReader, entry: Entry) -> Copies:
    """Every copy of an object, read and compared. Raises `StoreUnavailable`."""
    return _sorted(packs, entry.extents if entry.pack else [], Kind(entry.kind), entry.key)


def _sorted(packs: PackReader, extents: list[Extent], kind: Kind, key: bytes) -> Copies:
    good = [extent for extent in extents if packs.read(extent, kind, key) is not None]
    return Copies(good, [extent for extent in extents if extent not in good])


def make_whole(tx: Writer, kind: Kind, key: bytes) -> list[tuple[str, str]]:
    """Write what is missing of the copies of an object (of a context or a deletion: `key` is its label), if one is
    whole; returns what was damaged, in words. Nothing is done about what is damaged in all copies."""
    if kind is Kind.CONTEXT:
        row = tx.index.contexts.get(key)
        return [] if row is None else make_context_whole(tx, row)
    if kind is Kind.GONE:
        return next((make_gone_whole(tx, gone) for gone in tx.index.contexts.gone() if gone.label == key), [])
    entry = tx.index.objects.find(kind, key)
    return [] if entry is None else make_object_whole(tx, entry)


def make_object_whole(tx: Writer, entry: Entry) -> list[tuple[str, str]]:
    """`make_whole` of an object."""
    found = whole(tx.packs, entry)
    if not found.good or len(found.good) >= entry.copies:
        return []
    payload = tx.packs.read(found.good[0], Kind(entry.kind), entry.key)
    assert payload is not None
    extents = [*found.good, tx.write(Kind(entry.kind), entry.key, payload)]
    tx.index.objects.move(entry.id, extents[0], extents[1])
    return _told(tx, Kind(entry.kind), found.bad)


def make_context_whole(tx: Writer, row: ContextRow, *, leaving: int = 0) -> list[tuple[str, str]]:
    """`make_whole` of a context's record, which lies in the index as well. No copy is left in pack `leaving`."""
    right = next((bytes(raw) for raw in tx.store.records.copies(row) if tx.store.records.parse(raw) is not None), None)
    if right is None:
        return []
    good = [extent for extent in row.extents if _is(tx.packs.raw(extent), right)]
    bad = [extent for extent in row.extents if extent not in good]
    kept = [extent for extent in good if extent.pack != leaving]
    if right != row.record or len(kept) < 2:
        tx.changed = True
        extents = [*kept, *(tx.packs.copy(right) for _ in range(2 - len(kept)))]
        tx.index.contexts.move(row.id, right, extents)
    told = _told(tx, Kind.CONTEXT, bad)
    return told if right == row.record else [*told, ("record", "one in the index was damaged; it was written again")]


def make_gone_whole(tx: Writer, row: GoneRow, *, leaving: int = 0) -> list[tuple[str, str]]:
    """`make_whole` of the record of a deletion. No copy is left in pack `leaving`."""
    found = _sorted(tx.packs, row.extents, Kind.GONE, row.label)
    kept = [extent for extent in found.good if extent.pack != leaving]
    if len(kept) < 2:
        extents = [*kept, *(tx.write(Kind.GONE, row.label, b"", row.serial) for _ in range(2 - len(kept)))]
        tx.index.contexts.put_gone(row.label, row.serial, extents)
    return _told(tx, Kind.GONE, found.bad)


def _is(raw: Buffer | None, right: bytes) -> bool:
    return raw is not None and bytes(raw) == right


def _told(tx: Writer, kind: Kind, bad: list[Extent]) -> list[tuple[str, str]]:
    return [
        (
            SAID[kind],
            f"{tx.packs.path(extent.pack).name} at {extent.offset} was damaged; it was written again from its copy",
        )
        for extent in bad
    ]


def older_record(tx: Writer, label: bytes) -> Context | None:
    """The context in the latest whole record of a label that the packs have."""
    found: tuple[int, Context] | None = None
    for pack in tx.packs.files():
        for extent, header in tx.packs.scan(pack):
            if header.kind is not Kind.CONTEXT or header.key != label or (found and header.serial <= found[0]):
                continue
            raw = tx.packs.raw(extent)
            context = None if raw is None else tx.store.records.parse(raw)
            if context is not None:
                found = (header.serial, context)
    return found[1] if found else None
