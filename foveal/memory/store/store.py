"""A store: one folder, its transactions, and the contexts in it.

What is special here: there is one way to change a store, `transact`. It takes the writer's lock, cuts off what a dead
writer left, appends to the packs, syncs them, and commits the index; only then is anything acknowledged, and anything
that goes wrong on the way leaves the store as it was. Reading takes no lock. An index that is damaged, or gone, is made
again from the packs on the spot.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

from foveal.memory.errors import FormatError, IndexBehind, IndexDamaged, MemoryNotFound, StoreBusy, StoreError
from foveal.memory.store import rebuild, records
from foveal.memory.store.about import ABOUT, ABOUT_COPY, FORMAT, about_bytes, open_cipher, read_about
from foveal.memory.store.cipher import Cipher
from foveal.memory.store.files import Buffer, Disk, Presence, exclusive
from foveal.memory.store.index import ContextRow, Entry, Index, State
from foveal.memory.store.known import KnownPages
from foveal.memory.store.names import Names
from foveal.memory.store.objects import Context
from foveal.memory.store.packs import Packs
from foveal.memory.store.records import Kind
from foveal.memory.store.writer import Writer

Durability = Literal["full", "normal", "off"]
DURABILITIES: tuple[Durability, ...] = ("full", "normal", "off")

INDEX, LOCK, LIVE = "index.sqlite", "lock", "live"
_REBUILT, _DAMAGED = "index.rebuilt.sqlite", "index.damaged.sqlite"
_UNFINISHED = (_REBUILT, _DAMAGED, *(f".{name}.new" for name in (ABOUT, ABOUT_COPY, INDEX, _REBUILT)))
"""What a process that dies may leave, and nobody looks at."""
RESERVE, RESERVE_BYTES = "reserve", 256 << 10
"""A file of zeros that is given up when the disk is full and something is to be deleted."""
WAIT = 60.0
"""Seconds a writer waits for another one."""
_ATTEMPTS = 20
"""How often one looks again at a store that others keep changing."""

T = TypeVar("T")


class Store:
    """An open store. Safe to use from several threads; several processes may open one folder.

    durability: "full" syncs packs and index before anything is acknowledged: that then survives a power cut. "normal"
    syncs the packs only: a power cut may undo the last acknowledged changes, and never damages. "off" syncs nothing:
    still safe when a process is killed, not when the machine loses power.
    tenant: contexts and pages of one tenant do not exist for another. key: 32 bytes, for a store encrypted at rest.
    wait: seconds to wait for another writer before `StoreBusy`.

    Raises `FormatError` for a format this version does not read and for a missing or wrong key, `MemoryNotFound` when
    there is no store and `create` is off, `StoreError` when the system refuses.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        durability: Durability = "full",
        tenant: str = "",
        key: bytes | None = None,
        create: bool = True,
        wait: float = WAIT,
        disk: Disk | None = None,
    ) -> None:
        if durability not in DURABILITIES:
            raise StoreError(f"durability is {durability!r}; it must be one of {', '.join(DURABILITIES)}")
        self.folder = Path(folder).expanduser().absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file, and a store is a folder; name another one")
        self.durability, self.wait, self.disk = durability, wait, disk or Disk()
        self.known = KnownPages()
        self._lock = threading.RLock()
        self._index: Index | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._last_parsed: tuple[bytes, Context | None] = (b"", None)
        """A record, and the context in it."""
        self.damaged = ""
        """What was wrong with the index when it had to be made again. `verify` tells it, once."""
        try:
            about = self._about(key, create)
            self.id = bytes.fromhex(about["store"])
            self.cipher = open_cipher(about, key, self.folder)
            secret = self.cipher.secret(self.id) if self.cipher else blake2b(self.id, person=b"foveal-secret").digest()
            self.names = Names(secret[:32], tenant)
            self.packs = Packs(self.folder / "packs", self.id, self.disk, self.cipher)
            with self._lock:
                self._open_index()
                self._recover()
        except OSError as error:
            raise StoreError(f"cannot open the store {self.folder}: {error}") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.folder}>"

    def close(self) -> None:
        """Close its files. Pages that were loaded from it stay valid."""
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None
            self.packs.close()
            if self._scratch is not None:
                self._scratch.cleanup()
                self._scratch = None

    # ------------------------------------------------------------------ transactions

    def transact(self, work: Callable[[Writer], T], *, frees: bool = False) -> T:
        """Do `work` as the only writer, all of it or nothing. It may be done twice: when the index proves damaged, or
        when the disk is full and a little room can be made. `frees`: it is there to give space back.

        Raises `StoreBusy`, `StoreError` when the disk refuses, and whatever `work` raises; the store is then as it was.
        """
        with self._lock:
            try:
                with exclusive(self.folder / LOCK, self.wait):
                    for last in (False, True):
                        try:
                            return self._attempt(work)
                        except IndexDamaged as error:
                            if last:
                                raise
                            self._rebuild(error)
                        except (OSError, StoreError) as error:
                            if last or not is_full(error):
                                raise
                            self._make_room(all_of_it=frees)
            except OSError as error:
                raise StoreError(f"cannot write to the store {self.folder}: {error}") from error
        raise AssertionError("not reached")

    def check_writable(self) -> None:
        """Raises `StoreError` when this store can only be read."""
        index = self._open_index()
        if index.read_only:
            raise StoreError(f"the store {self.folder} cannot be written to ({index.read_only})")

    def _make_room(self, *, all_of_it: bool) -> None:
        """Shorten the index's log; for what frees space, give up the reserve as well."""
        self.vacuum()
        if all_of_it:
            with contextlib.suppress(OSError):
                self.disk.unlink(self.folder / RESERVE)
                self.disk.sync_folder(self.folder)
                _await_room(self.folder)

    def _keep_reserve(self) -> None:
        """Room without which nothing could be deleted from a store on a full disk."""
        path = self.folder / RESERVE
        if path.exists():
            return
        with contextlib.suppress(OSError):
            descriptor = self.disk.create(path)
            try:
                self.disk.write(descriptor, path, [bytes(RESERVE_BYTES)], 0)
            except OSError:
                path.unlink()
            finally:
                os.close(descriptor)

    def _attempt(self, work: Callable[[Writer], T]) -> T:
        index = self._open_index()
        self.check_writable()
        index.begin()
        try:
            state = index.state()
            self._settle(state)
            writer = Writer(self, index, state.serial)
            result = work(writer)
            if writer.changed:
                if self.durability != "off":
                    self.packs.sync()
                index.commit(State(self.packs.sizes, self.packs.next_pack, state.serial + 1))
            else:
                index.rollback()
            self.packs.end()
        except BaseException:
            with contextlib.suppress(StoreError):
                index.rollback()
            self.packs.abandon()
            self._trim()
            raise
        self._keep_reserve()
        for learned in writer.learned:
            self.known.add(*learned)
        for pack in writer.unlink:
            with contextlib.suppress(OSError):  # the next writer does it
                self.packs.unlink(pack)
        return result

    def _trim(self) -> None:
        """Give the space of a failed transaction back at once, if the disk lets us; the next writer does it anyway."""
        with contextlib.suppress(OSError, StoreError):
            state = self._open_index().state()
            self.packs.begin(state.sizes, state.next_pack, self.packs.files())

    def _recover(self) -> None:
        """Cut off what a dead writer left, unless somebody is writing just now or we may not."""
        index = self._open_index()
        files = self.packs.files()
        if files == index.state().sizes or index.read_only:
            return
        with contextlib.suppress(StoreBusy, OSError), exclusive(self.folder / LOCK, 0):
            try:
                self._settle(index.state())
            except IndexDamaged as error:
                self._rebuild(error)
            self.packs.abandon()

    def _settle(self, state: State) -> None:
        """Begin behind what is committed, and cut off the rest.

        Raises `IndexBehind` when the index is behind the packs: its log was lost, or damaged, and nothing may be cut
        off on its word.
        """
        files = self.packs.files()
        if files != state.sizes and self.packs.holds_more(state.sizes):
            raise IndexBehind(f"{self.folder / INDEX} is behind the packs")
        self.packs.begin(state.sizes, state.next_pack, files)

    def look(self, work: Callable[[Index], T]) -> T:
        """Do `work` on one consistent view of the index: within a transaction, on that of the transaction. It may be
        done twice, as in `transact`."""
        with self._lock:
            if self._index is not None and self._index.in_transaction:
                return work(self._index)
            for last in (False, True):
                try:
                    index = self._open_index()
                    index.execute("BEGIN")
                    try:
                        return work(index)
                    finally:
                        index.rollback()
                except IndexDamaged as error:
                    if last:
                        raise
                    self.repair(error)
        raise AssertionError("not reached")

    def vacuum(self) -> None:
        """Give back the space of rows that were deleted from the index, as far as nobody is reading it."""
        with self._lock, contextlib.suppress(StoreError):
            self._open_index().shrink()

    def tidy(self) -> None:
        """Delete what processes that died left behind, and what said that deleted contexts were in use."""
        labels = self.look(lambda index: {row.label.hex() for row in index.contexts()})
        with contextlib.suppress(OSError), exclusive(self.folder / LOCK, self.wait):
            for path in (self.folder / LIVE).glob("*"):
                if path.name not in labels:
                    Presence.sweep(path)
            for name in _UNFINISHED:
                for end in ("", "-wal", "-shm", "-journal"):
                    (self.folder / f"{name}{end}").unlink(missing_ok=True)

    def repair(self, problem: IndexDamaged | None = None) -> None:
        """Make the index again from the packs. Raises `StoreError` when the disk refuses.

        Within a transaction it raises `IndexDamaged`, for `transact` to make the index again and begin anew.
        """
        with self._lock:
            if self._index is not None and self._index.in_transaction:
                raise problem or IndexDamaged(f"{self.folder / INDEX} does not lead to what was saved")
            try:
                with exclusive(self.folder / LOCK, self.wait):
                    self._rebuild(problem)
            except (OSError, StoreError) as error:  # we cannot write here: an index of our own will do
                self._rebuild_elsewhere(error)

    # ------------------------------------------------------------------ opening

    def _about(self, key: bytes | None, create: bool) -> dict[str, Any]:
        """What `store.json` says; made anew, or from its copy, when it is not there."""
        found = [read_about(self.folder / name) for name in (ABOUT, ABOUT_COPY)]
        about = found[0] or found[1]
        if about is None:
            if any(path.stat().st_size for path in (self.folder / "packs").glob("*.pack")):
                raise StoreError(f"{self.folder / ABOUT} and its copy are damaged; put one of them back from a backup")
            if not create and not (self.folder / LOCK).exists():
                raise MemoryNotFound(f"there is no store at {self.folder}; `foveal read PATH --name NAME` makes one")
            about = self._create(key)
        if about.get("format") != FORMAT:
            raise FormatError(
                f"the store {self.folder} has format {about.get('format')!r} and this version reads {FORMAT}; "
                "`foveal export` its memories with the version of Foveal that made it, and `foveal import` them here"
            )
        self._about_data = about_bytes(about)
        if any(found) and found[0] != found[1]:
            with contextlib.suppress(OSError, StoreBusy):
                self.mend_about(0)
        return about

    def mend_about(self, wait: float | None = None) -> None:
        """Write `store.json` and its copy again where they are not as they should be. Raises `OSError`, and `StoreBusy`
        after `wait` seconds (default: the store's)."""
        with exclusive(self.folder / LOCK, self.wait if wait is None else wait):
            for path in (self.folder / ABOUT, self.folder / ABOUT_COPY):
                if not path.exists() or path.read_bytes() != self._about_data:
                    self.disk.write_file(path, self._about_data, sync=self.durability != "off")

    def _create(self, key: bytes | None) -> dict[str, Any]:
        self.disk.make_folder(self.folder / "packs")
        sync = self.durability != "off"
        with exclusive(self.folder / LOCK, self.wait):
            about = read_about(self.folder / ABOUT) or read_about(self.folder / ABOUT_COPY)
            if about is None:
                salt = os.urandom(16)
                check = Cipher(key).check_value(salt) if key is not None else None
                about = {"format": FORMAT, "store": salt.hex(), "key": check}
                # The copy first: once the first is there, the store exists and both are.
                self.disk.write_file(self.folder / ABOUT_COPY, about_bytes(about), sync=sync)
                self.disk.write_file(self.folder / ABOUT, about_bytes(about), sync=sync)
        return about

    def _open_index(self) -> Index:
        """The index, opened again when another process has made it anew, made again when it cannot be used."""
        if self._index is not None and (self._scratch is not None or not self._index.replaced()):
            return self._index
        if self._index is not None:
            self._index.close()
            self._index = None
        path = self.folder / INDEX
        if self._open(path) is None:
            return self.index
        try:
            with exclusive(self.folder / LOCK, self.wait):
                if (problem := self._open(path)) is not None:
                    self._rebuild(problem if path.exists() else None)
        except (OSError, StoreError) as error:
            self._rebuild_elsewhere(error)
        return self.index

    @property
    def index(self) -> Index:
        """The index that is open. Raises `StoreError` when none is."""
        if self._index is None:
            raise StoreError(f"the store {self.folder} is closed")
        return self._index

    def _open(self, path: Path) -> IndexDamaged | None:
        """Open the index, or say why it cannot be used."""
        try:
            self._index = Index(path, self.disk, self.durability, wait=self.wait)
            return None
        except IndexDamaged as error:
            return error

    def _rebuild(self, problem: IndexDamaged | None = None) -> None:
        """With the lock held. `problem` is what was wrong with the index, if it was."""
        if problem is not None and not isinstance(problem, IndexBehind):
            self.damaged = str(problem)
        known = self._index.legacy() if self._index is not None else None
        if self._index is not None:
            self._index.close()
            self._index = None
        self.disk.make_folder(self.folder / "packs")
        path = self.folder / INDEX
        fresh = self.folder / _REBUILT
        rebuild.build(self.packs, fresh, self.disk, known)
        # While the new index has no name yet there is none, and whoever comes makes it again: an old index without its
        # log would be a step back in time.
        if path.exists():
            self.disk.rename(path, self.folder / _DAMAGED)
        for end in ("-wal", "-shm"):
            self.disk.unlink(Path(f"{path}{end}"))
        self.disk.rename(fresh, path)
        self.disk.sync_folder(self.folder)
        self.disk.unlink(self.folder / _DAMAGED)
        self._index = Index(path, self.disk, self.durability, wait=self.wait)

    def _rebuild_elsewhere(self, problem: Exception) -> None:
        """An index for this process alone, where the store's folder cannot be written to. Raises `problem` when it is
        another."""
        if isinstance(problem, StoreError) and not is_full(problem):
            raise problem
        known = self._index.legacy() if self._index is not None else None
        if self._index is not None:
            self._index.close()
        self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="foveal-index-")
        path = Path(self._scratch.name) / INDEX
        rebuild.build(self.packs, path, Disk(), known)
        self._index = Index(path, self.disk, "off", wait=self.wait)
        self._index.read_only = str(problem)

    # ------------------------------------------------------------------ reading

    def read_object(self, entry: Entry) -> memoryview | None:
        """The verified payload of an object, from its copy if need be; None when neither is whole."""
        for place in entry.places:
            found = self.packs.read(place, Kind(entry.kind), entry.key)
            if found is not None:
                return found
        return None

    def fetch(self, kind: Kind, key: bytes, entry: Entry | None = None) -> tuple[memoryview | None, Entry | None]:
        """The verified payload of the object `kind`, `key` and where it lies; None for what is not there, or not whole.

        `entry` is where it was last seen: a compaction may have moved it since.
        """
        seen: Entry | None = None
        entry = entry or self.look(lambda index: index.find(kind, key))
        while entry is not None and entry != seen:
            payload = self.read_object(entry)
            if payload is not None:
                return payload, entry
            seen, entry = entry, self.look(lambda index: index.find(kind, key))
        return None, entry

    def insist(self, attempt: Callable[[], T | None]) -> T | None:
        """What `attempt` finds; tried again for as long as others change the store meanwhile, and then once more with
        the index made again, for the packs may know better than it does."""
        for _ in range(_ATTEMPTS):
            before = self.look(Index.stamp)
            found = attempt()
            if found is not None:
                return found
            if self.look(Index.stamp) == before:
                break
        self.repair()
        found = attempt()
        if found is not None:
            self.damaged = f"{self.folder / INDEX} did not lead to what was saved"
        return found

    def context(self, name: str) -> Context:
        """The context called `name`. Raises `MemoryNotFound`, or `StoreError` when both copies of it are damaged."""
        label = self.names.label(name)
        row = self.look(lambda index: index.seek(label))
        if row is not None and self._readable(row) is None:
            self.repair()  # the packs may know better than the index
            row = self.look(lambda index: index.seek(label))
        if row is None:
            raise MemoryNotFound(f"there is no memory {name!r} in {self.folder}; `foveal ls` lists those there are")
        return self.read_context(row)

    def contexts(self) -> list[Context | StoreError]:
        """All contexts of this tenant, by name; what cannot be read is there as its error."""
        found: list[Context | StoreError] = []
        for row in self.look(_all_contexts):
            try:
                context = self.read_context(row)
                if context.tenant == self.names.tenant:
                    found.append(context)
            except StoreError as error:
                if row.tenant == self.names.tenant:
                    found.append(error)
        return sorted(found, key=lambda item: (isinstance(item, StoreError), getattr(item, "name", "")))

    def read_context(self, row: ContextRow) -> Context:
        """The context of a row, from the index or from its pack. Raises `StoreError` when neither copy is whole."""
        context = self._readable(row)
        if context is not None:
            return context
        raise StoreError(f"the record of context {row.label.hex()[:12]} is damaged; `foveal verify` says more")

    def _readable(self, row: ContextRow) -> Context | None:
        parsed = (self.parse_context(raw) for raw in self.records_of(row))
        return next((context for context in parsed if context is not None), None)

    def records_of(self, row: ContextRow) -> Iterator[Buffer]:
        """Both copies of a context's record, unverified; the second is read when it is asked for."""
        yield row.record
        raw = self.packs.raw(row.place)
        if raw is not None:
            yield raw

    def parse_context(self, raw: Buffer) -> Context | None:
        """The context in a record, if it is one, whole, and under its own label."""
        known, last = self._last_parsed
        if known == raw:  # a long record takes a while, and a fork looks at one three times
            return last
        context = self._parse_context(raw)
        self._last_parsed = bytes(raw), context
        return context

    def _parse_context(self, raw: Buffer) -> Context | None:
        found = records.parse(raw, self.cipher)
        if found is None or found[0].kind is not Kind.CONTEXT:
            return None
        context = Context.from_bytes(found[1])
        right = context is not None and Names.of(context.tenant).label(context.name) == found[0].key
        return context if right else None


def _all_contexts(index: Index) -> list[ContextRow]:
    index.check_contexts()
    return index.contexts()


def is_full(error: BaseException) -> bool:
    """Whether the disk, or one's share of it, is used up."""
    codes = {getattr(found, "errno", None) for found in (error, error.__cause__)}
    return bool(codes & {errno.ENOSPC, errno.EDQUOT}) or "is full" in str(error)


def _await_room(folder: Path, seconds: float = 3.0) -> None:
    """Wait until the reserve's blocks can be had: a journaling file system (ext4) gives blocks out again only when
    their freeing stands in its journal, and a little later."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = os.statvfs(folder)
        if found.f_bfree * found.f_frsize >= RESERVE_BYTES:
            return
        time.sleep(0.02)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
