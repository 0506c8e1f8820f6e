"""What cannot be computed again is there twice: tokens, source maps, and the records of contexts and deletions.

One copy of two is enough to read by, and not enough to be left at that: whoever finds one damaged has the other written
again, here. Nothing that is about to be relied on, or given up, goes unchecked: `whole` reads every copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveal.memory.store.files import Buffer
from foveal.memory.store.objects import Context
from foveal.memory.store.packs import Packs, Place
from foveal.memory.store.records import SAID, Kind
from foveal.memory.store.rows import ContextRow, Entry, GoneRow
from foveal.memory.store.writer import Writer


@dataclass(frozen=True)
class Copies:
    """The copies of a record: `good` where the bytes are as they were written, `bad` where they are not."""

    good: list[Place]
    bad: list[Place]


def whole(packs: Packs, entry: Entry) -> Copies:
    """Every copy of an object, read and compared. Raises `StoreUnavailable`."""
    return _sorted(packs, entry.places if entry.pack else [], Kind(entry.kind), entry.key)


def _sorted(packs: Packs, places: list[Place], kind: Kind, key: bytes) -> Copies:
    good = [place for place in places if packs.read(place, kind, key) is not None]
    return Copies(good, [place for place in places if place not in good])


def make_whole(tx: Writer, kind: Kind, key: bytes) -> list[tuple[str, str]]:
    """Write what is missing of the copies of an object (of a context or a deletion: `key` is its label), if one is
    whole; returns what was damaged, in words. Nothing is done about what is damaged in all copies."""
    if kind is Kind.CONTEXT:
        row = tx.index.context(key)
        return [] if row is None else make_context_whole(tx, row)
    if kind is Kind.GONE:
        return next((make_gone_whole(tx, gone) for gone in tx.index.gone() if gone.label == key), [])
    entry = tx.index.find(kind, key)
    return [] if entry is None else make_object_whole(tx, entry)


def make_object_whole(tx: Writer, entry: Entry) -> list[tuple[str, str]]:
    """`make_whole` of an object."""
    found = whole(tx.packs, entry)
    if not found.good or len(found.good) >= entry.copies:
        return []
    payload = tx.packs.read(found.good[0], Kind(entry.kind), entry.key)
    assert payload is not None
    places = [*found.good, tx.write(Kind(entry.kind), entry.key, payload)]
    tx.index.move(entry.id, places[0], places[1])
    return _told(tx, Kind(entry.kind), found.bad)


def make_context_whole(tx: Writer, row: ContextRow, *, leaving: int = 0) -> list[tuple[str, str]]:
    """`make_whole` of a context's record, which lies in the index as well. No copy is left in pack `leaving`."""
    right = next((bytes(raw) for raw in tx.store.records_of(row) if tx.store.parse_context(raw) is not None), None)
    if right is None:
        return []
    good = [place for place in row.places if _is(tx.packs.raw(place), right)]
    bad = [place for place in row.places if place not in good]
    kept = [place for place in good if place.pack != leaving]
    if right != row.record or len(kept) < 2:
        tx.changed = True
        places = [*kept, *(tx.packs.copy(right) for _ in range(2 - len(kept)))]
        tx.index.move_context(row.id, right, places)
    told = _told(tx, Kind.CONTEXT, bad)
    return told if right == row.record else [*told, ("record", "one in the index was damaged; it was written again")]


def make_gone_whole(tx: Writer, row: GoneRow, *, leaving: int = 0) -> list[tuple[str, str]]:
    """`make_whole` of the record of a deletion. No copy is left in pack `leaving`."""
    found = _sorted(tx.packs, row.places, Kind.GONE, row.label)
    kept = [place for place in found.good if place.pack != leaving]
    if len(kept) < 2:
        places = [*kept, *(tx.write(Kind.GONE, row.label, b"", row.serial) for _ in range(2 - len(kept)))]
        tx.index.put_gone(row.label, row.serial, places)
    return _told(tx, Kind.GONE, found.bad)


def _is(raw: Buffer | None, right: bytes) -> bool:
    return raw is not None and bytes(raw) == right


def _told(tx: Writer, kind: Kind, bad: list[Place]) -> list[tuple[str, str]]:
    return [
        (
            SAID[kind],
            f"{tx.packs.path(place.pack).name} at {place.offset} was damaged; it was written again from its copy",
        )
        for place in bad
    ]


def older_record(tx: Writer, label: bytes) -> Context | None:
    """The context in the latest whole record of a label that the packs have."""
    found: tuple[int, Context] | None = None
    for pack in tx.packs.files():
        for place, header in tx.packs.scan(pack):
            if header.kind is not Kind.CONTEXT or header.key != label or (found and header.serial <= found[0]):
                continue
            raw = tx.packs.raw(place)
            context = None if raw is None else tx.store.parse_context(raw)
            if context is not None:
                found = (header.serial, context)
    return found[1] if found else None
