"""The index made again from the packs.

PackReader are a log. Of each context the record with the highest serial counts, unless a deletion came after it; of the
other objects, those that the surviving contexts refer to. So what is found is what had been committed, or, after a
crash, at most a transaction that was wholly written but not yet acknowledged. A context whose latest record can be
seen, and not read in any copy, is entered as what it is, damaged: never as an older version of itself.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from foveal.process.logs import logger
from foveal.store.errors import StoreError
from foveal.store.files import Disk
from foveal.store.index import Index
from foveal.store.index_schema import create_index, discard_index
from foveal.store.objects import Context, Node, tail_position
from foveal.store.pack_file import PACK_HEADER_BYTES
from foveal.store.pack_reader import PackReader
from foveal.store.records import (
    ALIGN,
    HEADER_BYTES,
    SAID,
    Extent,
    Header,
    Kind,
    key_in,
    parse,
    serial_in,
    size_in,
    span_of,
)
from foveal.store.rows import ContextRow, Legacy, State

_log = logger(__name__)


@dataclass
class _Latest:
    """The latest record of a label: its serial, and where it lies."""

    serial: int
    extents: list[Extent]


@dataclass
class _Found:
    """What the packs hold: key -> extents, latest first."""

    extents: dict[tuple[Kind, bytes], list[Extent]] = field(default_factory=dict)
    nodes: dict[bytes, Node] = field(default_factory=dict)
    contexts: dict[bytes, _Latest] = field(default_factory=dict)
    gone: dict[bytes, _Latest] = field(default_factory=dict)
    broken: dict[bytes, _Latest] = field(default_factory=dict)
    """Records of contexts that say whose they are, and of which nothing else is to be believed."""
    records: dict[bytes, bytes] = field(default_factory=dict)
    """Of contexts whose record lies in no pack any more."""
    gaps: list[Extent] = field(default_factory=list)
    """What is no record, and was not left by a torn write."""
    hurt: list[tuple[str, str]] = field(default_factory=list)
    """What is no record at all, in words: of which kind, and where."""
    damaged: list[tuple[Header, tuple[str, str]]] = field(default_factory=list)
    """Records whose payload is not what their header says, and that in words."""
    sizes: dict[int, int] = field(default_factory=dict)
    serial: int = 0


def build(packs: PackReader, path: Path, disk: Disk, known: Legacy | None = None) -> list[tuple[str, str]]:
    """Make a sound index at `path` from all packs; returns what of what is in use was found damaged, in words. Raises
    `StoreError`, and leaves nothing, when it cannot.

    `known` is what the index before it knew. Where a pack has lost the latest record of a context, an older one must
    not take its place: the one that the index had does.
    """
    found = _scan(packs)
    if known is not None and known.serial > found.serial:  # otherwise it is behind the packs
        for gone in known.gone:
            _keep_latest(found.gone, gone.label, gone.serial, gone.extents)
        for row in known.contexts:
            _remember(packs, found, row)
    try:
        create_index(path, disk)
        index = Index(path, disk, "full", wait=10.0)
        try:
            index.begin()
            entering = _Entering(packs, found, index)
            entering.run()
            next_pack = max([0, *packs.files(), *([known.next_pack - 1] if known is not None else [])]) + 1
            index.commit(State(found.sizes, next_pack, found.serial + 1, complete=False))
            index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            index.close()
    except (sqlite3.Error, StoreError, OSError) as error:
        discard_index(path)
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"cannot make the index {path}: {error}") from error
        raise
    _log.warning("the index was made again from %d packs", len(found.sizes))
    return [*found.hurt, *(words for header, words in found.damaged if entering.counts(header))]


def _remember(packs: PackReader, found: _Found, row: ContextRow) -> None:
    whole = parse(row.record, packs.cipher)
    if whole is None or whole[0].kind is not Kind.CONTEXT or whole[0].key != row.label:
        return
    serial = whole[0].serial
    if serial > max(_serial(latest, row.label) for latest in (found.contexts, found.gone)):
        found.contexts[row.label] = _Latest(serial, row.extents)
        found.records[row.label] = row.record


def _serial(latest: dict[bytes, _Latest], label: bytes) -> int:
    return latest[label].serial if label in latest else 0


def _keep_latest(latest: dict[bytes, _Latest], label: bytes, serial: int, extents: list[Extent]) -> None:
    """Of several records of a label the latest counts; of the same one, all extents."""
    if serial > _serial(latest, label):
        latest[label] = _Latest(serial, extents)
    elif serial == _serial(latest, label):
        latest[label].extents += [extent for extent in extents if extent not in latest[label].extents]


def _scan(packs: PackReader) -> _Found:
    found = _Found()
    for pack, size in sorted(packs.files().items()):
        end, expected = PACK_HEADER_BYTES if packs.sound(pack) else 0, PACK_HEADER_BYTES
        for extent, header in packs.scan(pack):
            if extent.offset > expected:
                found.gaps.append(Extent(pack, expected, extent.offset - expected))
            end = expected = extent.offset + extent.span
            found.serial = max(found.serial, header.serial)
            _note(packs, found, extent, header)
            packs.maps.passed(extent.span)
        damaged = _damaged_end(packs, Extent(pack, expected, size - expected))
        if damaged:
            found.gaps.append(Extent(pack, expected, damaged))
            end = expected + damaged
        if end:  # otherwise it was cut off in its first bytes
            found.sizes[pack] = end
    for gap in found.gaps:
        found.hurt.append(("pack", f"{packs.path(gap.pack).name}: {gap.span} bytes at {gap.offset} are no record"))
        _look_into(packs, found, gap)
    return found


def _damaged_end(packs: PackReader, rest: Extent) -> int:
    """Bytes of what was one record or more at the end of a pack; what a write left that was torn is none."""
    size = 0
    while rest.span - size >= HEADER_BYTES:
        raw = packs.raw(Extent(rest.pack, rest.offset + size, HEADER_BYTES))
        span = 0 if raw is None else span_of(size_in(raw))
        if not any(raw or b"") or size + span > rest.span:
            break
        size += span
    return size


def _look_into(packs: PackReader, found: _Found, gap: Extent) -> None:
    """What is no record may have been one of a context that is known, by the label where its key would be."""
    for offset in range(gap.offset, gap.offset + gap.span - HEADER_BYTES, ALIGN):
        raw = packs.raw(Extent(gap.pack, offset, HEADER_BYTES))
        label = key_in(raw) if raw is not None else b""
        if raw is not None and (label in found.contexts or label in found.gone):
            _keep_latest(found.broken, label, serial_in(raw), [Extent(gap.pack, offset, HEADER_BYTES)])


def _note(packs: PackReader, found: _Found, extent: Extent, header: Header) -> None:
    if header.kind in (Kind.CONTEXT, Kind.GONE):
        sound = packs.read(extent, header.kind, header.key) is not None
        if not sound:
            found.damaged.append((header, _damage(packs, extent, header.kind)))
        latest = found.contexts if header.kind is Kind.CONTEXT else found.gone
        _keep_latest(latest if sound else found.broken, header.key, header.serial, [extent])
        return
    if header.kind is Kind.NODE:
        payload = packs.read(extent, header.kind, header.key)
        node = None if payload is None else Node.from_bytes(payload)
        if node is None:
            found.damaged.append((header, _damage(packs, extent, header.kind)))
            return
        found.nodes[header.key] = replace(node, tokens=b"")  # they are many, and not needed here
    if header.kind is Kind.MAP and packs.read(extent, header.kind, header.key) is None:
        found.damaged.append((header, _damage(packs, extent, header.kind)))
        return
    found.extents.setdefault((header.kind, header.key), []).insert(0, extent)


def _damage(packs: PackReader, extent: Extent, kind: Kind) -> tuple[str, str]:
    return SAID[kind], f"{packs.path(extent.pack).name} at {extent.offset} was damaged when the index was made again"


class _Entering:
    """Enters what the surviving contexts refer to."""

    def __init__(self, packs: PackReader, found: _Found, index: Index) -> None:
        self.packs, self.found, self.index = packs, found, index
        self.numbers: dict[tuple[Kind, bytes], int] = {}
        self.wanted: set[tuple[Kind, bytes]] = set()
        """Nodes and maps that a context refers to, found or not."""

    def counts(self, header: Header) -> bool:
        """Whether anything that is there needs, or has just lost, the record: what nobody refers to may be damaged."""
        if header.kind in (Kind.CONTEXT, Kind.GONE):
            found = (self.found.contexts, self.found.gone)
            return header.serial >= max(_serial(latest, header.key) for latest in found)
        return (header.kind, header.key) in self.wanted

    def run(self) -> None:
        for label, latest in sorted(self.found.contexts.items(), key=lambda item: item[1].serial):
            if latest.serial >= _serial(self.found.gone, label):
                self._context(label, latest)
        for label, latest in self.found.gone.items():
            if latest.serial >= _serial(self.found.contexts, label):
                self.index.contexts.put_gone(label, latest.serial, latest.extents[:2])

    def _context(self, label: bytes, latest: _Latest) -> None:
        raw = self.found.records.get(label) or self.packs.raw(latest.extents[0])
        whole = None if raw is None else parse(raw, self.packs.cipher)
        if raw is None or whole is None:
            return
        payload = whole[1]
        context = Context.from_bytes(payload)
        tenant = context.tenant if context is not None else _tenant(payload)
        objects = self._objects(context) if context is not None else []
        extents = _two_of(latest.extents)
        broken = self.found.broken.get(label)
        if broken is not None and broken.serial > latest.serial:
            # What it refers to is kept for as long as it is not deleted, and so are those bytes.
            raw, extents = self.packs.raw(broken.extents[0]) or b"", broken.extents[:1]
        self.index.contexts.put(label, tenant, latest.serial, bytes(raw), extents, time.time(), objects)

    def _objects(self, context: Context) -> list[int]:
        numbers = [self._nodes(context.head)] if context.pages else []
        numbers += [self._tail(key) for _, key in context.tails]
        numbers += [self._plain(Kind.MAP, key) for _, key in context.maps]
        return [number for number in numbers if number]

    def _nodes(self, key: bytes) -> int:
        """The number of the node `key`, entered after its ancestors; 0 when it, or one of them, is lost."""
        missing: list[tuple[bytes, Node]] = []
        while (Kind.NODE, key) not in self.numbers:
            self.wanted.add((Kind.NODE, key))
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
            if (Kind.PAGE, key) in self.found.extents:
                self._enter(Kind.PAGE, key, position=node.position)
        return parent

    def _tail(self, key: bytes) -> int:
        if (Kind.TAIL, key) in self.numbers:
            return self.numbers[Kind.TAIL, key]
        for extent in self.found.extents.get((Kind.TAIL, key), []):
            payload = self.packs.read(extent, Kind.TAIL, key)
            about = None if payload is None else tail_position(payload)
            if about is not None:
                name, node, position = about
                parent = self.numbers.get((Kind.NODE, node), 0)
                return self._enter(Kind.TAIL, key, name=name, parent=parent, position=position)
        return 0

    def _plain(self, kind: Kind, key: bytes) -> int:
        self.wanted.add((kind, key))
        return self.numbers.get((kind, key)) or self._enter(kind, key)

    def _enter(self, kind: Kind, key: bytes, *, name: bytes = b"", parent: int = 0, position: int = 0) -> int:
        extents = self.found.extents.get((kind, key), [])
        if not extents:
            return 0
        copy = _two_of(extents)[1:] if kind in (Kind.NODE, Kind.MAP) else []
        number = self.index.objects.add(kind, key, extents[0], *copy, name=name, parent=parent, position=position)
        self.numbers[kind, key] = number
        return number


def _two_of(extents: list[Extent]) -> list[Extent]:
    """The first extent, and another one of the same size."""
    return [extents[0], *(extent for extent in extents[1:] if extent.span == extents[0].span)][:2]


def _tenant(payload: memoryview) -> bytes:
    """The tenant of a context that this version does not read otherwise."""
    try:
        return bytes.fromhex(json.loads(bytes(payload))["tenant"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return bytes(HEADER_BYTES)
