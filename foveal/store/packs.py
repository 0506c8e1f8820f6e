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

import os
from pathlib import Path

from foveal.store import records
from foveal.store.cipher import Cipher
from foveal.store.files import Buffer, Disk, open_file
from foveal.store.lost import LOST, Lost
from foveal.store.pack_file import PACK_HEADER_BYTES, pack_header
from foveal.store.pack_reader import LAST, PackReader
from foveal.store.records import Extent, Kind
from foveal.store.rows import State

PACK_BYTES = 256 << 20
"""A pack that has reached this size is not appended to any more."""


class Packs(PackReader):
    """The packs in `folder`, to be appended to. `sizes` (pack number -> committed bytes) is set by whoever knows, the
    index."""

    def __init__(self, folder: Path, store: bytes, disk: Disk, cipher: Cipher | None) -> None:
        super().__init__(folder, store, disk, cipher)
        self.lost = Lost(folder.with_name(LOST), disk)
        """Where packs go of which something was given up that might have been more than we could read."""
        self.sizes: dict[int, int] = {}
        self.next_pack = 1
        self.pack_bytes = PACK_BYTES
        self.written = 0
        """Bytes appended since this object was made."""
        self._writing: dict[int, int] = {}
        self._new: list[int] = []

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
        return any(header.kind in LAST for _, header in self.scan(pack, max(size, PACK_HEADER_BYTES)))

    def _cut(self, pack: int, size: int, finished: bool) -> None:
        """Cut a pack off behind `size` bytes (0: delete it). What may belong to a change that was acknowledged
        (`finished`), and can only not be told from a torn one because something before it is damaged, is kept in
        `lost`."""
        path = self.path(pack)
        self.maps.forget(pack)
        if size == 0:
            if finished:
                self.set_apart(pack)
            else:
                self.disk.unlink(path)
            return
        if finished:
            self.lost.keep_end(path, size)
        self.disk.truncate(path, size)

    def set_apart(self, pack: int) -> None:
        """Move a pack into `lost`."""
        self.maps.forget(pack)
        self.lost.move(self.path(pack))

    def give_up(self, pack: int) -> None:
        """Keep a pack in `lost`, under a second name there; its own goes with `unlink`."""
        self.lost.keep(self.path(pack))

    def append(self, kind: Kind, key: bytes, payload: Buffer, serial: int, digest: bytes = b"") -> Extent:
        """Write a record behind the last one. Raises `OSError`; what was written then does not count."""
        return self._put(records.make(kind, key, payload, serial, self.cipher, digest))

    def copy(self, raw: Buffer) -> Extent:
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
        self.maps.forget(pack)
        self.disk.unlink(self.path(pack))

    def close(self) -> None:
        self._close()
        self.maps.clear()

    def _put(self, pieces: list[Buffer]) -> Extent:
        pack = self._active()
        offset = self.sizes[pack]
        size = self.disk.write(self._writing[pack], self.path(pack), pieces, offset)
        self.sizes[pack] = offset + size
        self.written += size
        return Extent(pack, offset, size)

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
        self.sizes[pack] = self.disk.write(self._writing[pack], path, [pack_header(pack, self.store)], 0)
        return pack

    def _close(self) -> None:
        for descriptor in self._writing.values():
            os.close(descriptor)
        self._writing.clear()
        self._new.clear()
