"""Reading packs: a record where one should lie, all records of a pack, and whether packs hold what the index forgot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foveal.store import records
from foveal.store.cipher import Cipher
from foveal.store.errors import StoreUnavailable
from foveal.store.files import Disk
from foveal.store.pack_file import PACK_HEADER_BYTES, pack_header, pack_name, pack_number
from foveal.store.pack_maps import PackMaps
from foveal.store.records import HEADER_BYTES, Extent, Header, Kind
from foveal.store.rows import State

LAST = (Kind.CONTEXT, Kind.GONE)
"""A transaction that changes a context writes one of these behind all else."""


class PackReader:
    """The packs in `folder`, of the store with the identity `store` (16 bytes). Methods raise `StoreUnavailable` for
    what cannot be read now."""

    def __init__(self, folder: Path, store: bytes, disk: Disk, cipher: Cipher | None) -> None:
        self.folder, self.store, self.disk, self.cipher = folder, store, disk, cipher
        self.maps = PackMaps(self.path, disk)

    def path(self, pack: int) -> Path:
        return self.folder / pack_name(pack)

    def files(self) -> dict[int, int]:
        """Pack number -> bytes, of the files there are. Raises `StoreUnavailable`, as all reading of packs does."""
        try:
            found = self.disk.sizes(self.folder)
        except OSError as error:
            raise StoreUnavailable(self.folder, error) from error
        return {pack: size for name, size in found.items() if (pack := pack_number(name)) is not None}

    def read(self, extent: Extent, kind: Kind, key: bytes) -> memoryview | None:
        """The verified payload of the record `kind`, `key` at `extent`, or None when that is not what lies there."""
        found = self.stored(extent, kind, key)
        return None if found is None else records.open_payload(*found, self.cipher)

    def stored(self, extent: Extent, kind: Kind, key: bytes) -> tuple[Header, memoryview] | None:
        """Header and payload as they lie there; the payload is not verified."""
        data = self.raw(extent)
        header = None if data is None else Header.parse(data)
        if data is None or header is None or header.kind is not kind:
            return None
        if header.key != key or header.span != extent.span:
            return None
        return header, data[HEADER_BYTES : HEADER_BYTES + header.size]

    def raw(self, extent: Extent) -> memoryview | None:
        """All bytes of a record, padding included, unverified."""
        return self.maps.view(extent.pack, extent.offset, extent.offset + extent.span)

    def is_padded(self, extent: Extent) -> bool:
        """Whether what fills a record up to its span is zeros."""
        raw = self.raw(extent)
        return raw is not None and not any(raw[HEADER_BYTES + records.size_in(raw) :])

    def beginnings(self, extents: list[Extent], size: int) -> Iterator[bytes]:
        """The first `size` bytes of each record, unverified; none of what is not there. Quick for many of them: a pack
        is looked up once."""
        ends: dict[int, int] = {}
        for pack, offset, span in extents:
            ends[pack] = max(ends.get(pack, 0), offset + span)
        maps = {pack: self.maps.get(pack, end) for pack, end in ends.items()}
        views = {pack: mapped.view if mapped is not None else memoryview(b"") for pack, mapped in maps.items()}
        return (views[pack][offset : offset + size].tobytes() for pack, offset, _ in extents)

    def scan(self, pack: int, start: int = PACK_HEADER_BYTES) -> Iterator[tuple[Extent, Header]]:
        """All records of a pack whose headers are sound, in order; damaged stretches (`gaps`) are passed over."""
        self.maps.forget(pack)  # it may have grown since
        mapped = self.maps.get(pack, PACK_HEADER_BYTES)
        offset = start
        while mapped is not None and offset + HEADER_BYTES <= mapped.size:
            header = Header.parse(mapped.view[offset : offset + HEADER_BYTES])
            if header is not None and offset + header.span <= mapped.size:
                yield Extent(pack, offset, header.span), header
                offset += header.span
                continue
            offset = mapped.find(records.RECORD_MAGIC, offset + 1)

    def gaps(self, pack: int, end: int) -> list[tuple[int, int]]:
        """First and last byte + 1 of the stretches before `end` that are no record: their headers are damaged."""
        found, expected = [], PACK_HEADER_BYTES
        for extent, _ in self.scan(pack):
            if extent.offset >= end:
                break
            if extent.offset > expected:
                found.append((expected, extent.offset))
            expected = extent.offset + extent.span
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
            for extent, header in self._behind(pack, sizes.get(pack, PACK_HEADER_BYTES)):
                if self.read(extent, header.kind, header.key) is None:
                    torn = True
                    break
                ended = ended or header.kind in LAST
            if torn:
                break
        return ended

    def _behind(self, pack: int, start: int) -> Iterator[tuple[Extent, Header]]:
        """The records from `start` on, up to the first that is not sound."""
        expected = start
        for extent, header in self.scan(pack, start):
            if extent.offset != expected:
                return
            yield extent, header
            expected += header.span

    def sound(self, pack: int) -> bool:
        """Whether the pack begins as a pack of this store does."""
        head = self.maps.view(pack, 0, PACK_HEADER_BYTES)
        return head is not None and bytes(head) == pack_header(pack, self.store)


def _came_back(pack: int, state: State) -> bool:
    """Whether there was a pack of that number before, and nobody has emptied it: it was away meanwhile."""
    return pack < state.next_pack and pack not in state.sizes and pack not in state.dropped
