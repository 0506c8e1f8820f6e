"""The folder of a store and the few files in it that are neither packs nor index: `store.json`, the reserve, leftovers.

What a store holds is its owner's alone, so the folder is closed to others. `store.json` is there twice; what one of
them has lost the other one gives back.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import Any

from foveal.store.about import ABOUT, ABOUT_COPY, FORMAT, about_bytes, read_about
from foveal.store.cipher import Cipher
from foveal.store.errors import FormatError, MemoryNotFound, StoreBusy, StoreError
from foveal.store.files import Disk, Presence, exclusive
from foveal.store.index_file import ENDS, INDEX, LOCK, REBUILT, REPLACED
from foveal.store.lost import LOST
from foveal.store.pack_file import owners
from foveal.store.repairs import REPAIRS, Repairs

LIVE = "live"
PACKS = "packs"
_UNFINISHED = (REBUILT, REPLACED, *(f".{name}.new" for name in (ABOUT, ABOUT_COPY, INDEX, REBUILT)))
"""What a process that dies may leave, and nobody looks at."""
RESERVE, RESERVE_BYTES = "reserve", 256 << 10
"""A file of zeros that is given up when the disk is full and something is to be deleted."""
_OWN = {ABOUT, ABOUT_COPY, INDEX, LOCK, LIVE, PACKS, RESERVE, LOST, REPAIRS, *_UNFINISHED}
"""What may lie in the folder of a store."""


class OwnFiles:
    """The files in `folder`. `sync`: whether what is written is synced; `wait`: seconds to wait for another writer."""

    def __init__(self, folder: Path, disk: Disk, repairs: Repairs, *, sync: bool, wait: float) -> None:
        self.folder, self.disk, self.repairs, self.sync, self.wait = folder, disk, repairs, sync, wait
        self._about = b""
        """The bytes that `store.json` and its copy should have."""

    # ------------------------------------------------------------------ store.json

    def open(self, key: bytes | None, create: bool) -> dict[str, Any]:
        """What `store.json` says, or its copy; made anew when there is neither. Closes the folder to others.

        Raises `FormatError`, `MemoryNotFound` when there is none and `create` is off, `StoreError`, `OSError`.
        """
        self._close_to_others()
        found = [read_about(self.folder / name, self.disk) for name in (ABOUT, ABOUT_COPY)]
        about = self._of_these_packs([one for one in found if one is not None])
        if about is None:
            if self._has_packs():
                raise StoreError(f"{self.folder / ABOUT} and its copy are damaged; put one of them back from a backup")
            if not create and not (self.folder / LOCK).exists():
                raise MemoryNotFound(f"there is no store at {self.folder}; `foveal read PATH --name NAME` makes one")
            about = self._create(key)
        if about.get("format") != FORMAT:
            raise FormatError(
                f"the store {self.folder} has format {about.get('format')!r} and this version reads {FORMAT}; "
                "`foveal export` its memories with the version of Foveal that made it, and `foveal import` them here"
            )
        self._about = about_bytes(about)
        if any(found) and found[0] != found[1]:
            with contextlib.suppress(OSError, StoreBusy):
                self.mend_about(0)
        return about

    def mend_about(self, wait: float | None = None) -> None:
        """Write `store.json` and its copy again where they are not as they should be. Raises `OSError`, and `StoreBusy`
        after `wait` seconds (default: the store's)."""
        with exclusive(self.folder / LOCK, self.wait if wait is None else wait, disk=self.disk):
            for path in (self.folder / ABOUT, self.folder / ABOUT_COPY):
                if self.disk.read_file(path) != self._about:
                    self.disk.write_file(path, self._about, sync=self.sync)
                    if self.disk.stat(self.folder / INDEX) is not None:  # else it was never there: its maker died
                        self.repairs.add("about", f"{path.name} was damaged or missing; it was written from its copy")

    def _of_these_packs(self, found: list[dict[str, Any]]) -> dict[str, Any] | None:
        """That of `found` which belongs to the packs; the first where there are none. Raises `StoreError` when none
        does: under another store's identity all packs would be taken for damaged."""
        stores = [one.get("store") for one in found]
        try:
            others = []
            for owner in owners(self.folder / PACKS, self.disk) if found else ():
                if owner.hex() in stores:
                    return found[stores.index(owner.hex())]
                others.append(owner)
        except FileNotFoundError:
            return found[0] if found else None
        if others:
            raise StoreError(
                f"{self.folder / ABOUT} is that of another store than the packs beside it; put the right one back"
            )
        return found[0] if found else None

    def _has_packs(self) -> bool:
        try:
            return any(self.disk.sizes(self.folder / PACKS).values())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _close_to_others(self) -> None:
        """What a store holds is its owner's alone: a folder that others may look into is closed to them."""
        found = self.disk.stat(self.folder)
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode):
            raise StoreError(f"{self.folder} is a file, and a store is a folder; name another one")
        if found.st_mode & 0o077:
            # A store that cannot be closed is read all the same: it may lie where nothing can be changed.
            others = sorted(set(self.disk.sizes(self.folder)) - _OWN)
            others = [name for name in others if not name.startswith(INDEX)]
            if others and self.disk.stat(self.folder / ABOUT) is None:
                raise StoreError(
                    f"{self.folder} holds other files ({others[0]}) and may be read by others; a store wants a folder "
                    "of its own: name one that is empty, or not there yet"
                )
            with contextlib.suppress(PermissionError, OSError):
                os.chmod(self.folder, 0o700)

    def _create(self, key: bytes | None) -> dict[str, Any]:
        self.disk.make_folder(self.folder / PACKS)
        with exclusive(self.folder / LOCK, self.wait, disk=self.disk):
            about = read_about(self.folder / ABOUT, self.disk) or read_about(self.folder / ABOUT_COPY, self.disk)
            if about is None:
                salt = os.urandom(16)
                check = Cipher(key).check_value(salt) if key is not None else None
                about = {"format": FORMAT, "store": salt.hex(), "key": check}
                # The copy first: once the first is there, the store exists and both are.
                self.disk.write_file(self.folder / ABOUT_COPY, about_bytes(about), sync=self.sync)
                self.disk.write_file(self.folder / ABOUT, about_bytes(about), sync=self.sync)
        return about

    # ------------------------------------------------------------------ the reserve

    def keep_reserve(self) -> None:
        """Room without which nothing could be deleted from a store on a full disk."""
        path = self.folder / RESERVE
        with contextlib.suppress(OSError):
            if self.disk.stat(path) is not None:
                return
            descriptor = self.disk.create(path)
            try:
                self.disk.write(descriptor, path, [bytes(RESERVE_BYTES)], 0)
            except OSError:
                path.unlink()
            finally:
                os.close(descriptor)

    def mend_reserve(self) -> None:
        """Make the reserve again if it does not hold zeros. Raises `OSError`."""
        path = self.folder / RESERVE
        if any(self.disk.read_file(path) or b""):
            self.disk.unlink(path)
            self.keep_reserve()

    def give_up_reserve(self) -> None:
        """Delete the reserve, if the disk lets us, and wait until its room can be had."""
        with contextlib.suppress(OSError):
            self.disk.unlink(self.folder / RESERVE)
            self.disk.sync_folder(self.folder)
            _await_room(self.folder)

    # ------------------------------------------------------------------ leftovers

    def tidy(self, labels: set[str]) -> None:
        """Delete what processes that died left behind, and what said that contexts were in use which are not among
        `labels` (hexadecimal) any more."""
        with contextlib.suppress(OSError), exclusive(self.folder / LOCK, self.wait, disk=self.disk):
            for path in (self.folder / LIVE).glob("*"):
                if path.name not in labels:
                    Presence.sweep(path)
            for name in _UNFINISHED:
                for end in ENDS:
                    (self.folder / f"{name}{end}").unlink(missing_ok=True)


def _await_room(folder: Path, seconds: float = 3.0) -> None:
    """Wait until the reserve's blocks can be had: a journaling file system (ext4) gives blocks out again only when
    their freeing stands in its journal, and a little later."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = os.statvfs(folder)
        if found.f_bfree * found.f_frsize >= RESERVE_BYTES:
            return
        time.sleep(0.02)
