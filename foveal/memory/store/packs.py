"""Packs: append-only files of records.

A pack only ever grows, and only its committed length counts. What lies behind that was written by somebody who died
before it was acknowledged; the next writer cuts it off. Packs are read through memory maps, so a page of the cache is a
piece of the file, brought in by the system when it is touched and dropped when memory is short. A pack is never
overwritten: when much of it is dead, what lives is copied into another pack and the file is unlinked, which leaves
whoever has it mapped undisturbed.

Two answers are kept apart everywhere: bytes that were read and are not what was written (None: they are damaged), and
bytes that the system does not let us read now (`StoreUnavailable`). Only the first may ever lead to giving them up; and
what is given up, and might hold more than we can read of it, is moved into the folder `lost`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import re
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foveal.cache.mapped import let_go_of
from foveal.memory.errors import StoreUnavailable
from foveal.memory.store import records
from foveal.memory.store.cipher import Cipher
from foveal.memory.store.files import Buffer, Disk, open_file
from foveal.memory.store.names import checksum
from foveal.memory.store.records import HEADER_BYTES, Header, Kind

if TYPE_CHECKING:
    from foveal.cache import Pager
    from foveal.memory.store.rows import State

PACK_MAGIC = b"FovealPk"
PACK_HEADER_BYTES = 64
PACK_BYTES = 256 << 20
"""A pack that has reached this size is not appended to any more."""

LOST = "lost"
LET_GO_BYTES = 256 << 20
"""Who reads a whole store holds no more of it in memory at a time."""

_HEADER = struct.Struct("<8sI4xQ16s8x")
_NAME = re.compile(r"([0-9]{10})\.pack")
VERSION = 1
_LAST = (Kind.CONTEXT, Kind.GONE)
"""A transaction that changes a context writes one of these behind all else."""


class Place(NamedTuple):
    """Where a record lies: it takes `span` bytes of pack number `pack` from `offset` on."""

    pack: int
    offset: int
    span: int


class Packs:
    """The packs in `folder`. `sizes` (pack number -> committed bytes) is set by whoever knows, the index."""

    def __init__(self, folder: Path, store: bytes, disk: Disk, cipher: Cipher | None) -> None:
        self.folder, self.store, self.disk, self.cipher = folder, store, disk, cipher
        self.lost = folder.with_name(LOST)
        """Where packs go of which something was given up that might have been more than we could read."""
        self.sizes: dict[int, int] = {}
        self.next_pack = 1
        self.pack_bytes = PACK_BYTES
        self.written = 0
        """Bytes appended since this object was made."""
        self._maps: dict[int, _Map] = {}
        self._living: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._pagers: weakref.WeakSet[Pager] = weakref.WeakSet()
        self._listing = threading.Lock()
        self._passed = 0
        self._writing: dict[int, int] = {}
        self._new: list[int] = []

    def path(self, pack: int) -> Path:
        return self.folder / f"{pack:010}.pack"

    def files(self) -> dict[int, int]:
        """Pack number -> bytes, of the files there are. Raises `StoreUnavailable`, as all reading of packs does."""
        try:
            found = self.disk.sizes(self.folder)
        except OSError as error:
            raise StoreUnavailable(self.folder, error) from error
        return {int(match[1]): size for name, size in found.items() if (match := _NAME.fullmatch(name))}

    # ------------------------------------------------------------------ reading

    def read(self, place: Place, kind: Kind, key: bytes) -> memoryview | None:
        """The verified payload of the record `kind`, `key` at `place`, or None when that is not what lies there."""
        found = self.stored(place, kind, key)
        return None if found is None else records.open_payload(*found, self.cipher)

    def stored(self, place: Place, kind: Kind, key: bytes) -> tuple[Header, memoryview] | None:
        """Header and payload as they lie there; the payload is not verified."""
        data = self.raw(place)
        header = None if data is None else Header.parse(data)
        if data is None or header is None or header.kind is not kind:
            return None
        if header.key != key or header.span != place.span:
            return None
        return header, data[HEADER_BYTES : HEADER_BYTES + header.size]

    def raw(self, place: Place) -> memoryview | None:
        """All bytes of a record, padding included, unverified."""
        return self._view(place.pack, place.offset, place.offset + place.span)

    def is_padded(self, place: Place) -> bool:
        """Whether what fills a record up to its span is zeros."""
        raw = self.raw(place)
        return raw is not None and not any(raw[HEADER_BYTES + records.size_in(raw) :])

    def beginnings(self, places: list[Place], size: int) -> Iterator[bytes]:
        """The first `size` bytes of each record, unverified; none of what is not there. Quick for many of them: a pack
        is looked up once."""
        ends: dict[int, int] = {}
        for pack, offset, span in places:
            ends[pack] = max(ends.get(pack, 0), offset + span)
        maps = {pack: self._map(pack, end) for pack, end in ends.items()}
        views = {pack: mapped.view if mapped is not None else memoryview(b"") for pack, mapped in maps.items()}
        return (views[pack][offset : offset + size].tobytes() for pack, offset, _ in places)

    def scan(self, pack: int, start: int = PACK_HEADER_BYTES) -> Iterator[tuple[Place, Header]]:
        """All records of a pack whose headers are sound, in order; damaged stretches (`gaps`) are passed over."""
        self._maps.pop(pack, None)  # it may have grown since
        mapped = self._map(pack, PACK_HEADER_BYTES)
        offset = start
        while mapped is not None and offset + HEADER_BYTES <= mapped.size:
            header = Header.parse(mapped.view[offset : offset + HEADER_BYTES])
            if header is not None and offset + header.span <= mapped.size:
                yield Place(pack, offset, header.span), header
                offset += header.span
                continue
            offset = mapped.find(records.RECORD_MAGIC, offset + 1)

    def gaps(self, pack: int, end: int) -> list[tuple[int, int]]:
        """First and last byte + 1 of the stretches before `end` that are no record: their headers are damaged."""
        found, expected = [], PACK_HEADER_BYTES
        for place, _ in self.scan(pack):
            if place.offset >= end:
                break
            if place.offset > expected:
                found.append((expected, place.offset))
            expected = place.offset + place.span
        return [*found, (expected, end)] if expected < end else found

    def holds_more(self, state: State) -> bool:
        """Whether there is more than `state` knows: whole transactions behind its sizes, or a pack that it has not.

        The last record of a transaction is that of a context, or of its deletion; all before it must be whole. A
        compaction shows in that a pack is gone and there is more than there should be elsewhere.
        """
        files, sizes = self.files(), state.sizes
        if any(size > PACK_HEADER_BYTES and _came_back(pack, state) for pack, size in files.items()):
            return True
        if not sizes.keys() <= files.keys() and any(size > sizes.get(pack, 0) for pack, size in files.items()):
            return True
        ended = False
        for pack in sorted(files):
            torn = False
            for place, header in self._behind(pack, sizes.get(pack, PACK_HEADER_BYTES)):
                if self.read(place, header.kind, header.key) is None:
                    torn = True
                    break
                ended = ended or header.kind in _LAST
            if torn:
                break
        return ended

    def _behind(self, pack: int, start: int) -> Iterator[tuple[Place, Header]]:
        """The records from `start` on, up to the first that is not sound."""
        expected = start
        for place, header in self.scan(pack, start):
            if place.offset != expected:
                return
            yield place, header
            expected += header.span

    def are_whole(self) -> bool:
        """Whether all mapped files are still as long as their maps: else looking at those kills the process."""
        with self._listing:
            return all(mapped.size() >= len(mapped) for mapped in self._living)

    def sound(self, pack: int) -> bool:
        """Whether the pack begins as a pack of this store does."""
        head = self._view(pack, 0, PACK_HEADER_BYTES)
        return head is not None and bytes(head) == self._header(pack)

    def will_need(self, places: Iterable[Place]) -> None:
        """Ask the system to bring these records in, in as few and as long reads as they allow."""
        ranges: list[list[int]] = []
        for pack, offset, span in sorted(places):
            if ranges and ranges[-1][0] == pack and offset - ranges[-1][2] < mmap.PAGESIZE * 16:
                ranges[-1][2] = offset + span
            else:
                ranges.append([pack, offset, offset + span])
        for pack, start, end in ranges:
            mapped = self._map(pack, end)
            if mapped is not None:
                mapped.will_need(start, end)

    def passed(self, nbytes: int) -> None:
        """Told by whoever reads a whole store: what was read is not needed again, and is let go of now and then."""
        self._passed += nbytes
        if self._passed >= LET_GO_BYTES:
            self._passed = 0
            for mapped in list(self._living):
                for _ in let_go_of(mapped):
                    pass

    def let_go_by(self, pager: Pager) -> None:
        """Let a pager let go of all maps, also of those to come, and when this object is gone."""
        with self._listing:
            self._pagers.add(pager)
            living = list(self._living)
        for mapped in living:
            pager.add(mapped)

    def _view(self, pack: int, start: int, end: int) -> memoryview | None:
        mapped = self._map(pack, end)
        return None if mapped is None or start < 0 else mapped.view[start:end]

    def _map(self, pack: int, end: int) -> _Map | None:
        """A map of the pack that reaches to `end`, or None when the file does not, or is gone."""
        mapped = self._maps.get(pack)
        if mapped is not None and end <= mapped.size and mapped.serves(end):
            return mapped
        path = self.path(pack)
        try:
            mapped = _Map(path, self.disk)
        except (FileNotFoundError, _Empty):
            return None
        except OSError as error:
            raise StoreUnavailable(path, error) from error
        with self._listing:
            self._living.add(mapped.map)
            pagers = list(self._pagers)
        for pager in pagers:
            pager.add(mapped.map)
        self._maps[pack] = mapped
        return mapped if end <= mapped.size else None

    # ------------------------------------------------------------------ writing

    def begin(self, state: State, files: dict[int, int], *, own: bool = False) -> None:
        """Start appending behind what `state` knows; cut off, or delete, whatever lies behind. `files`: what `files`
        said; `own`: what is to be cut off was written by this process, and failed."""
        self.abandon()
        self.sizes, self.next_pack = dict(state.sizes), state.next_pack
        behind = {pack: self.sizes.get(pack, 0) for pack, size in files.items() if size > self.sizes.get(pack, -1)}
        behind = {pack: size for pack, size in behind.items() if size or pack >= state.next_pack}
        finished = not own and any(self._is_finished(pack, size) for pack, size in behind.items())
        for pack, size in behind.items():
            self._cut(pack, size, finished)
            self.next_pack = max(self.next_pack, pack + 1)
        for pack, size in files.items():
            if pack in state.sizes or pack in behind:
                continue
            if pack in state.dropped or size <= PACK_HEADER_BYTES:  # who emptied or made it died before it went on
                self.unlink(pack)

    def _is_finished(self, pack: int, size: int) -> bool:
        """Whether something ends behind `size` that may be a transaction."""
        return any(header.kind in _LAST for _, header in self.scan(pack, max(size, PACK_HEADER_BYTES)))

    def _cut(self, pack: int, size: int, finished: bool) -> None:
        """Cut a pack off behind `size` bytes (0: delete it). What may belong to a change that was acknowledged
        (`finished`), and can only not be told from a torn one because something before it is damaged, is kept in
        `lost`."""
        path = self.path(pack)
        self._maps.pop(pack, None)
        if size == 0:
            if finished:
                self.set_apart(pack)
            else:
                self.disk.unlink(path)
            return
        if finished:
            self._keep_end(path, size)
        self.disk.truncate(path, size)

    def _keep_end(self, path: Path, start: int) -> None:
        """Write what lies behind `start` into a file of its own in `lost`."""
        with open(self.disk.open(path), "rb") as file:
            file.seek(start)
            self.disk.write_file(self.aside(f"{path.name}.from-{start}"), file.read(), sync=True)

    def set_apart(self, pack: int) -> None:
        """Move a pack into `lost`."""
        self._maps.pop(pack, None)
        self.disk.rename(self.path(pack), self.aside(self.path(pack).name))
        self.disk.sync_folder(self.lost)

    def give_up(self, pack: int) -> None:
        """Keep a pack in `lost`, under a second name there; its own goes with `unlink`. Where a file can have only one
        name it is copied."""
        path = self.path(pack)
        try:
            self.disk.link(path, self.aside(path.name))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            self._keep_end(path, 0)
        self.disk.sync_folder(self.lost)

    def aside(self, name: str) -> Path:
        """A free name in the folder `lost`, which is made if need be."""
        self.disk.make_folder(self.lost)
        return next(
            path for n in itertools.count() if not (path := self.lost / (f"{name}.{n}" if n else name)).exists()
        )

    def append(self, kind: Kind, key: bytes, payload: Buffer, serial: int, digest: bytes = b"") -> Place:
        """Write a record behind the last one. Raises `OSError`; what was written then does not count."""
        return self._put(records.make(kind, key, payload, serial, self.cipher, digest))

    def copy(self, raw: Buffer) -> Place:
        """Write a record again, as it is."""
        return self._put([raw])

    def sync(self) -> None:
        """Make sure that everything appended, and the names of new packs, are on the disk."""
        for pack, descriptor in self._writing.items():
            self.disk.sync(descriptor, self.path(pack))
        if self._new:
            self.disk.sync_folder(self.folder)

    def end(self) -> None:
        """What was appended is committed."""
        self._close()

    def abandon(self) -> None:
        """What was appended does not count."""
        for pack in self._new:
            self.sizes.pop(pack, None)
        self._close()

    def drop(self, pack: int) -> None:
        """Forget a pack; `unlink` it when that is committed."""
        self.sizes.pop(pack, None)

    def unlink(self, pack: int) -> None:
        self._maps.pop(pack, None)
        self.disk.unlink(self.path(pack))

    def close(self) -> None:
        self._close()
        self._maps.clear()

    def _put(self, pieces: list[Buffer]) -> Place:
        pack = self._active()
        offset = self.sizes[pack]
        size = self.disk.write(self._writing[pack], self.path(pack), pieces, offset)
        self.sizes[pack] = offset + size
        self.written += size
        return Place(pack, offset, size)

    def _active(self) -> int:
        """The pack to append to, open."""
        open_packs = [pack for pack, size in self.sizes.items() if size < self.pack_bytes]
        pack = max(open_packs, default=0)
        if pack not in self._writing and pack:
            try:
                self._writing[pack] = open_file(self.path(pack), os.O_RDWR)
            except FileNotFoundError:  # lost: leave it to `verify`, and go on in a new one
                pack = 0
        return pack or self._create()

    def _create(self) -> int:
        pack, self.next_pack = self.next_pack, self.next_pack + 1
        path = self.path(pack)
        self._writing[pack] = self.disk.create(path)
        self._new.append(pack)
        self.sizes[pack] = self.disk.write(self._writing[pack], path, [self._header(pack)], 0)
        return pack

    def _header(self, pack: int) -> bytes:
        head = _HEADER.pack(PACK_MAGIC, VERSION, pack, self.store)
        return head + checksum(head)

    def _close(self) -> None:
        for descriptor in self._writing.values():
            os.close(descriptor)
        self._writing.clear()
        self._new.clear()


def owners(folder: Path, disk: Disk) -> Iterator[bytes]:
    """The identity of the store that each pack in `folder` says it belongs to, of those that begin as packs do. Raises
    `OSError`."""
    for name in sorted(disk.sizes(folder)):
        if not _NAME.fullmatch(name):
            continue
        with contextlib.suppress(FileNotFoundError), open(disk.open(folder / name), "rb") as file:
            head = file.read(PACK_HEADER_BYTES)
            if len(head) == PACK_HEADER_BYTES and checksum(head[: _HEADER.size]) == head[_HEADER.size :]:
                yield _HEADER.unpack_from(head)[3]


def _came_back(pack: int, state: State) -> bool:
    """Whether there was a pack of that number before, and nobody has emptied it: it was away meanwhile."""
    return pack < state.next_pack and pack not in state.sizes and pack not in state.dropped


class _Empty(Exception):
    """A file of no bytes cannot be mapped."""


class _Map:
    """A private map of a file as long as it is now. Nobody writes into it; it is writable for the sake of tensors."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._descriptor = disk.open(path)
        try:
            self.size = os.fstat(self._descriptor).st_size
            if not self.size:
                raise _Empty
            self.map = disk.map(self._descriptor, path, self.size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.view = memoryview(self.map)

    def __del__(self) -> None:
        if hasattr(self, "view"):
            os.close(self._descriptor)

    def serves(self, end: int) -> bool:
        """Whether one may read up to `end`: beyond its file's end a map kills the process, and when the file was
        deleted another one may have got its name (a pack whose writer died before it counted)."""
        now = os.fstat(self._descriptor)
        return now.st_size >= end and (now.st_nlink > 0 or not self._path.exists())

    def will_need(self, start: int, end: int) -> None:
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_WILLNEED"):
            with contextlib.suppress(OSError):  # advice only
                self.map.madvise(mmap.MADV_WILLNEED, first, end - first)

    def find(self, magic: bytes, start: int) -> int:
        """The next aligned place of `magic`, or the end."""
        while (start := self.map.find(magic, start)) >= 0:
            if start % records.ALIGN == 0:
                return start
            start += 1
        return self.size
