"""What the index holds, as rows: objects, contexts, deletions, and the state that changes are counted by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from foveal.store.errors import IndexDamaged
from foveal.store.records import Extent, Kind


class Entry(NamedTuple):
    """One object.

    `name` is a node's page name or a tail's name; `parent` a node's parent, or the node a tail stands behind (0 when
    there is none); `position` the tokens up to its end. A second copy lies in `pack2` at `offset2` (0: there is none).
    """

    id: int
    kind: int
    key: bytes
    name: bytes
    parent: int
    position: int
    pack: int
    offset: int
    span: int
    pack2: int
    offset2: int

    @property
    def extents(self) -> list[Extent]:
        """Where the record lies, and where its copy does."""
        return _extents(self.pack, self.offset, self.span, self.pack2, self.offset2)

    @property
    def copies(self) -> int:
        """How many there should be: what cannot be computed again is there twice."""
        return 2 if self.kind in (Kind.NODE, Kind.MAP) else 1


ENTRY_COLUMNS = ", ".join(Entry._fields)
_ENTRY_TYPES = (int, int, bytes, bytes, *[int] * 7)
_KINDS = {int(kind) for kind in (Kind.NODE, Kind.PAGE, Kind.TAIL, Kind.MAP)}


class ContextRow(NamedTuple):
    """`record` is the context's record as it lies twice in the packs as well."""

    id: int
    label: bytes
    tenant: bytes
    serial: int
    record: bytes
    pack: int
    offset: int
    span: int
    pack2: int
    offset2: int
    used: float

    @property
    def extents(self) -> list[Extent]:
        """Where the record lies, and where its copy does."""
        return _extents(self.pack, self.offset, self.span, self.pack2, self.offset2)


CONTEXT_COLUMNS = ", ".join(ContextRow._fields)


class GoneRow(NamedTuple):
    """A deletion that is remembered, of the context `label`."""

    label: bytes
    serial: int
    pack: int
    offset: int
    span: int
    pack2: int
    offset2: int

    @property
    def extents(self) -> list[Extent]:
        """Where its record lies, and where its copy does."""
        return _extents(self.pack, self.offset, self.span, self.pack2, self.offset2)


def _extents(pack: int, offset: int, span: int, pack2: int, offset2: int) -> list[Extent]:
    first = [Extent(pack, offset, span)]
    return [*first, Extent(pack2, offset2, span)] if pack2 else first


class Legacy(NamedTuple):
    """What an index knew before transaction `serial`: contexts, whose records prove themselves, deletions, and which
    numbers of packs are taken."""

    serial: int
    next_pack: int
    contexts: list[ContextRow]
    gone: list[GoneRow]


class State(NamedTuple):
    """What must be right before anything is cut off or deleted: committed size of each pack, next pack, next serial."""

    sizes: dict[int, int]
    next_pack: int
    serial: int
    complete: bool = True
    """Off when the index was made again, and what is kept twice has not been completed since."""
    dropped: tuple[int, ...] = ()
    """Packs that a compaction has emptied, and whose files may still be there."""
    listed: str = ""
    """A hash of which contexts and deletions there are ("": not known, as older versions left it)."""

    def to_bytes(self) -> bytes:
        data: dict[str, object] = {"sizes": sorted(self.sizes.items())}
        data |= {"next_pack": self.next_pack, "serial": self.serial}
        if not self.complete:
            data["complete"] = 0
        if self.dropped:
            data["dropped"] = sorted(self.dropped)
        if self.listed:
            data["listed"] = self.listed
        return json.dumps(data, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        found = json.loads(data)
        sizes = {int(pack): int(size) for pack, size in found["sizes"]}
        complete, dropped = bool(found.get("complete", 1)), tuple(found.get("dropped", ()))
        return cls(sizes, found["next_pack"], found["serial"], complete, dropped, found.get("listed", ""))


def columns_of(extents: Sequence[Extent]) -> tuple[int, int, int, int, int]:
    """The columns pack, offset, span, pack2 and offset2 of one or two extents."""
    second = (extents[1].pack, extents[1].offset) if len(extents) > 1 else (0, 0)
    return (*extents[0], *second)


def entry_of(row: tuple[object, ...]) -> Entry:
    """An object's row. Raises `IndexDamaged` when a value has another type than was written."""
    check_types(row, _ENTRY_TYPES)
    if row[1] not in _KINDS:
        raise IndexDamaged(f"a row has the kind {row[1]}")
    return Entry(*row)  # type: ignore[arg-type]


def context_of(row: tuple[object, ...]) -> ContextRow:
    check_types(row, (int, bytes, bytes, int, bytes, *[int] * 5, float))
    return ContextRow(*row)  # type: ignore[arg-type]


def gone_of(row: tuple[object, ...]) -> GoneRow:
    check_types(row, (bytes, *[int] * 6))
    return GoneRow(*row)  # type: ignore[arg-type]


def check_types(row: tuple[object, ...], types: tuple[type, ...]) -> None:
    if tuple(map(type, row)) != types:
        raise IndexDamaged("a row holds values of other types than it should")
