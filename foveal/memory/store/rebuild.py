"""The index made again from the packs.

What is special here: packs are a log. Of each context the record with the highest serial counts, unless a deletion came
after it; of the other objects, those that the surviving contexts refer to. So what is found is what had been committed,
or, after a crash, at most a transaction that was wholly written but not yet acknowledged.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from foveal.memory.errors import StoreError
from foveal.memory.store.files import Disk
from foveal.memory.store.index import ContextRow, Index, Legacy, State
from foveal.memory.store.objects import Context, Node, tail_position
from foveal.memory.store.packs import PACK_HEADER_BYTES, Packs, Place
from foveal.memory.store.records import HEADER_BYTES, Header, Kind, parse


@dataclass
class _Found:
    """What the packs hold: key -> places, latest first."""

    places: dict[tuple[Kind, bytes], list[Place]] = field(default_factory=dict)
    nodes: dict[bytes, Node] = field(default_factory=dict)
    contexts: dict[bytes, tuple[int, Place]] = field(default_factory=dict)
    gone: dict[bytes, tuple[int, Place]] = field(default_factory=dict)
    records: dict[bytes, bytes] = field(default_factory=dict)
    """Of contexts whose record lies in no pack any more."""
    sizes: dict[int, int] = field(default_factory=dict)
    serial: int = 0


def build(packs: Packs, path: Path, disk: Disk, known: Legacy | None = None) -> None:
    """Make a sound index at `path` from all packs. Raises `StoreError`, and leaves nothing, when it cannot.

    `known` is what the index before it knew. Where a pack has lost the latest record of a context, an older one must
    not take its place: the one that the index had does.
    """
    found = _scan(packs)
    if known is not None and known.serial > found.serial:  # otherwise it is behind the packs
        for label, serial, place in known.gone:
            found.gone[label] = max(found.gone.get(label, (0, place)), (serial, place))
        for row in known.contexts:
            _remember(packs, found, row)
    try:
        Index.create(path, disk)
        index = Index(path, disk, "full", wait=10.0)
        try:
            index.begin()
            _Entering(packs, found, index).run()
            next_pack = max(packs.files(), default=0) + 1
            index.commit(State(found.sizes, next_pack, found.serial + 1))
            index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            index.close()
    except (sqlite3.Error, StoreError, OSError) as error:
        Index.discard(path)
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"cannot make the index {path}: {error}") from error
        raise


def _remember(packs: Packs, found: _Found, row: ContextRow) -> None:
    whole = parse(row.record, packs.cipher)
    if whole is None or whole[0].kind is not Kind.CONTEXT or whole[0].key != row.label:
        return
    serial = whole[0].serial
    if serial > max(latest.get(row.label, (0, row.place))[0] for latest in (found.contexts, found.gone)):
        found.contexts[row.label] = (serial, row.place)
        found.records[row.label] = row.record


def _scan(packs: Packs) -> _Found:
    found = _Found()
    for pack in sorted(packs.files()):
        end = PACK_HEADER_BYTES if packs.sound(pack) else 0
        for place, header in packs.scan(pack):
            end = place.offset + place.span
            found.serial = max(found.serial, header.serial)
            _note(packs, found, place, header)
            packs.passed(place.span)
        if end:  # otherwise it was cut off in its first bytes
            found.sizes[pack] = end
    return found


def _note(packs: Packs, found: _Found, place: Place, header: Header) -> None:
    latest = found.contexts if header.kind is Kind.CONTEXT else found.gone
    if header.kind in (Kind.CONTEXT, Kind.GONE):
        payload = packs.read(place, header.kind, header.key)
        if payload is not None and header.serial >= latest.get(header.key, (0, place))[0]:
            latest[header.key] = (header.serial, place)
        return
    if header.kind is Kind.NODE:
        payload = packs.read(place, header.kind, header.key)
        node = None if payload is None else Node.from_bytes(payload)
        if node is None:
            return
        found.nodes[header.key] = replace(node, tokens=b"")  # they are many, and not needed here
    found.places.setdefault((header.kind, header.key), []).insert(0, place)


class _Entering:
    """Enters what the surviving contexts refer to."""

    def __init__(self, packs: Packs, found: _Found, index: Index) -> None:
        self.packs, self.found, self.index = packs, found, index
        self.numbers: dict[tuple[Kind, bytes], int] = {}

    def run(self) -> None:
        for label, (serial, place) in sorted(self.found.contexts.items(), key=lambda item: item[1][0]):
            if serial < self.found.gone.get(label, (0, place))[0]:
                continue
            raw = self.found.records.get(label) or self.packs.raw(place)
            whole = None if raw is None else parse(raw, self.packs.cipher)
            if raw is None or whole is None:
                continue
            payload = whole[1]
            context = Context.from_bytes(payload)
            tenant = context.tenant if context is not None else _tenant(payload)
            objects = self._objects(context) if context is not None else []
            self.index.put_context(label, tenant, serial, bytes(raw), place, time.time(), objects)
        for label, (serial, place) in self.found.gone.items():
            if serial >= self.found.contexts.get(label, (0, place))[0]:
                self.index.put_gone(label, serial, place)

    def _objects(self, context: Context) -> list[int]:
        numbers = [self._nodes(context.head)] if context.pages else []
        numbers += [self._tail(key) for _, key in context.tails]
        numbers += [self._plain(Kind.MAP, key) for _, key in context.maps]
        return [number for number in numbers if number]

    def _nodes(self, key: bytes) -> int:
        """The number of the node `key`, entered after its ancestors; 0 when it, or one of them, is lost."""
        missing: list[tuple[bytes, Node]] = []
        while (Kind.NODE, key) not in self.numbers:
            node = self.found.nodes.get(key)
            if node is None:
                break
            missing.append((key, node))
            key = node.parent
        parent = self.numbers.get((Kind.NODE, key), 0)
        if missing and not parent and missing[-1][1].position != 256:
            return 0
        for key, node in reversed(missing):
            parent = self._enter(Kind.NODE, key, name=node.name, parent=parent, position=node.position)
            if (Kind.PAGE, key) in self.found.places:
                self._enter(Kind.PAGE, key, position=node.position)
        return parent

    def _tail(self, key: bytes) -> int:
        if (Kind.TAIL, key) in self.numbers:
            return self.numbers[Kind.TAIL, key]
        for place in self.found.places.get((Kind.TAIL, key), []):
            payload = self.packs.read(place, Kind.TAIL, key)
            about = None if payload is None else tail_position(payload)
            if about is not None:
                name, node, position = about
                parent = self.numbers.get((Kind.NODE, node), 0)
                return self._enter(Kind.TAIL, key, name=name, parent=parent, position=position)
        return 0

    def _plain(self, kind: Kind, key: bytes) -> int:
        return self.numbers.get((kind, key)) or self._enter(kind, key)

    def _enter(self, kind: Kind, key: bytes, *, name: bytes = b"", parent: int = 0, position: int = 0) -> int:
        places = self.found.places.get((kind, key), [])
        if not places:
            return 0
        copy = next((place for place in places[1:] if place.span == places[0].span), None)
        if kind in (Kind.PAGE, Kind.TAIL):
            copy = None
        number = self.index.add(kind, key, places[0], copy, name=name, parent=parent, position=position)
        self.numbers[kind, key] = number
        return number


def _tenant(payload: memoryview) -> bytes:
    """The tenant of a context that this version does not read otherwise."""
    try:
        return bytes.fromhex(json.loads(bytes(payload))["tenant"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return bytes(HEADER_BYTES)
