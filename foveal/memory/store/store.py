"""A store: one folder, its transactions, and the contexts in it.

There is one way to change a store, `transact`. It takes the writer's lock, cuts off what a dead writer left, appends to
the packs, syncs them, and commits the index; only then is anything acknowledged, and anything that goes wrong on the
way leaves the store as it was. Reading takes no lock. An index that is damaged, or gone, is made again from the packs
on the spot. A record that is kept twice, and of which reading found one copy damaged, is made whole by the next
transaction.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeVar

from foveal.memory.errors import (
    FormatError,
    IndexBehind,
    IndexDamaged,
    MemoryNotFound,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from foveal.memory.store import copies, records
from foveal.memory.store.about import ABOUT, ABOUT_COPY, FORMAT, about_bytes, open_cipher, read_about
from foveal.memory.store.cipher import Cipher
from foveal.memory.store.files import Buffer, Disk, Presence, exclusive
from foveal.memory.store.index import Index
from foveal.memory.store.index_file import ENDS, INDEX, LOCK, REBUILT, REPLACED, IndexFile, is_full
from foveal.memory.store.known import KnownPages
from foveal.memory.store.names import Names
from foveal.memory.store.objects import Context
from foveal.memory.store.packs import LOST, Packs, owners
from foveal.memory.store.records import Kind
from foveal.memory.store.repairs import REPAIRS, Repairs
from foveal.memory.store.rows import ContextRow, Entry, State
from foveal.memory.store.writer import Writer

Durability = Literal["full", "normal", "off"]
DURABILITIES: tuple[Durability, ...] = ("full", "normal", "off")

LIVE = "live"
_UNFINISHED = (REBUILT, REPLACED, *(f".{name}.new" for name in (ABOUT, ABOUT_COPY, INDEX, REBUILT)))
"""What a process that dies may leave, and nobody looks at."""
_OWN = {ABOUT, ABOUT_COPY, INDEX, LOCK, LIVE, "packs", "reserve", LOST, REPAIRS, *_UNFINISHED}
"""What may lie in the folder of a store."""
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
        self.durability, self.wait, self.disk = durability, wait, disk or Disk()
        self.known = KnownPages()
        self.repairs = Repairs(self.folder, self.disk)
        """What was mended and `verify` has not told yet."""
        self._lock = threading.RLock()
        self._last_parsed: tuple[bytes, Context | None] = (b"", None)
        """A record, and the context in it."""
        self._hurt: set[tuple[Kind, bytes]] = set()
        """What is kept twice and was read from its second copy (of contexts: the label)."""
        try:
            self._check_folder()
            about = self._about(key, create)
            self.id = bytes.fromhex(about["store"])
            self.cipher = open_cipher(about, key, self.folder)
            secret = self.cipher.secret(self.id) if self.cipher else blake2b(self.id, person=b"foveal-secret").digest()
            self.names = Names(secret[:32], tenant)
            self.packs = Packs(self.folder / "packs", self.id, self.disk, self.cipher)
            self._file = IndexFile(
                self.folder, self.packs, self.disk, durability, wait, self.repairs, lambda: self._attempt(_nothing)
            )
            with self._lock, contextlib.ExitStack() as opening:
                opening.callback(self.close)
                self._file.current()
                self._recover()
                opening.pop_all()
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
            self._file.close()
            self.packs.close()

    # ------------------------------------------------------------------ transactions

    def transact(self, work: Callable[[Writer], T], *, frees: bool = False) -> T:
        """Do `work` as the only writer, all of it or nothing. It may be done twice: when the index proves damaged, or
        when the disk is full and a little room can be made. `frees`: it is there to give space back.

        Raises `StoreBusy`, `StoreError` when the disk refuses, and whatever `work` raises; the store is then as it was.
        """
        return self._transact(work, wait=self.wait, frees=frees)

    def _transact(self, work: Callable[[Writer], T], *, wait: float, frees: bool) -> T:
        with self._lock:
            self.check_writable()
            try:
                with exclusive(self.folder / LOCK, wait, disk=self.disk):
                    for last in (False, True):
                        try:
                            return self._attempt(work)
                        except IndexDamaged as error:
                            if last:
                                raise
                            self._file.rebuild(error)
                        except (OSError, StoreError) as error:
                            if last or not is_full(error):
                                raise
                            self._make_room(all_of_it=frees)
            except OSError as error:
                raise StoreError(f"cannot write to the store {self.folder}: {error}") from error
        raise AssertionError("not reached")

    def check_writable(self) -> None:
        """Raises `StoreError` when this store can only be read. Not with the writer's lock held."""
        with self._lock:
            index = self._file.current()
            if index.read_only and os.access(self.folder, os.W_OK):  # what kept us from writing may be over
                index = self._file.reopened()
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

    def mend_reserve(self) -> None:
        """Make the reserve again if it does not hold zeros. Raises `OSError`."""
        path = self.folder / RESERVE
        if any(self.disk.read_file(path) or b""):
            self.disk.unlink(path)
            self._keep_reserve()

    def _keep_reserve(self) -> None:
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

    def _attempt(self, work: Callable[[Writer], T]) -> T:
        index = self._file.current()
        if index.read_only:
            raise StoreError(f"the store {self.folder} cannot be written to ({index.read_only})")
        index.begin()
        try:
            state = index.state()
            self._settle(state)
            writer = Writer(self, index, state.serial)
            mended = self._make_whole(writer, everything=not state.complete)
            result = work(writer)
            if writer.changed:
                if self.durability != "off":
                    self.packs.sync()
                dropped = tuple(writer.unlink)
                index.commit(State(self.packs.sizes, self.packs.next_pack, state.serial + 1, dropped=dropped))
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
        for what, where in mended:
            self.repairs.add(what, where)
        for learned in writer.learned:
            self.known.add(*learned)
        for pack in writer.unlink:
            with contextlib.suppress(OSError):  # the next writer does it
                self.packs.unlink(pack)
        return result

    def _make_whole(self, writer: Writer, *, everything: bool) -> list[tuple[str, str]]:
        """Write a second copy again of what is kept twice and was found with one; returns what was damaged. With
        `everything`, of all there is only one copy of: so it is when the index was made again."""
        mended = []
        hurt, self._hurt = self._hurt, set()
        for kind, key in sorted(hurt):
            mended += copies.make_whole(writer, kind, key)
        if everything:
            writer.changed = True
            for kind, key in writer.index.singles():
                copies.make_whole(writer, kind, key)
        return mended

    def mend(self) -> None:
        """Make whole again what reading found damaged in one of its copies, if the store can be written to just now."""
        if self._hurt:
            with contextlib.suppress(StoreError):
                self._transact(_nothing, wait=0, frees=False)

    def _trim(self) -> None:
        """Give the space of a failed transaction back at once, if the disk lets us; the next writer does it anyway."""
        with contextlib.suppress(OSError, StoreError):
            state = self._file.current().state()
            self.packs.begin(state, self.packs.files(), own=True)

    def _recover(self) -> None:
        """Cut off what a dead writer left, unless somebody is writing just now or we may not."""
        index = self._file.current()
        files = self.packs.files()
        if files == index.state().sizes or index.read_only:
            return
        with contextlib.suppress(StoreBusy, OSError), exclusive(self.folder / LOCK, 0, disk=self.disk):
            try:
                self._settle(index.state())
            except IndexDamaged as error:
                self._file.rebuild(error)
            self.packs.abandon()

    def _settle(self, state: State) -> None:
        """Begin behind what is committed, and cut off the rest.

        Raises `IndexBehind` when the index is behind the packs: its log was lost, or damaged, or a pack came back that
        was away when the index was made again. Nothing may be cut off on its word.
        """
        files = self.packs.files()
        if files != state.sizes and self.packs.holds_more(state):
            raise IndexBehind(f"{self.folder / INDEX} is behind the packs")
        self.packs.begin(state, files)

    @property
    def index(self) -> Index:
        """The index that is open. Raises `StoreError` when none is."""
        return self._file.opened()

    def look(self, work: Callable[[Index], T]) -> T:
        """Do `work` on one consistent view of the index: within a transaction, on that of the transaction. It may be
        done twice, as in `transact`."""
        with self._lock:
            if self._file.open is not None and self._file.open.in_transaction:
                return work(self._file.open)
            for last in (False, True):
                try:
                    index = self._file.current()
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
            self._file.current().shrink()

    def tidy(self) -> None:
        """Delete what processes that died left behind, and what said that deleted contexts were in use."""
        labels = self.look(lambda index: {row.label.hex() for row in index.contexts()})
        with contextlib.suppress(OSError), exclusive(self.folder / LOCK, self.wait, disk=self.disk):
            for path in (self.folder / LIVE).glob("*"):
                if path.name not in labels:
                    Presence.sweep(path)
            for name in _UNFINISHED:
                for end in ENDS:
                    (self.folder / f"{name}{end}").unlink(missing_ok=True)

    def repair(self, problem: IndexDamaged | None = None) -> None:
        """Make the index again from the packs. Raises `StoreError` when the disk refuses.

        Within a transaction it raises `IndexDamaged`, for `transact` to make the index again and begin anew.
        """
        with self._lock:
            if self._file.open is not None and self._file.open.in_transaction:
                raise problem or IndexDamaged(f"{self.folder / INDEX} does not lead to what was saved")
            self._file.repair(problem)

    # ------------------------------------------------------------------ opening

    def _about(self, key: bytes | None, create: bool) -> dict[str, Any]:
        """What `store.json` says, or its copy; made anew when there is neither."""
        found = [read_about(self.folder / name, self.disk) for name in (ABOUT, ABOUT_COPY)]
        about = self._own_about([one for one in found if one is not None])
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
        self._about_data = about_bytes(about)
        if any(found) and found[0] != found[1]:
            with contextlib.suppress(OSError, StoreBusy):
                self.mend_about(0)
        return about

    def _own_about(self, found: list[dict[str, Any]]) -> dict[str, Any] | None:
        """That of `found` which belongs to the packs; the first where there are none. Raises `StoreError` when none
        does: under another store's identity all packs would be taken for damaged."""
        stores = [one.get("store") for one in found]
        try:
            others = []
            for owner in owners(self.folder / "packs", self.disk) if found else ():
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
            return any(self.disk.sizes(self.folder / "packs").values())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _check_folder(self) -> None:
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

    def mend_about(self, wait: float | None = None) -> None:
        """Write `store.json` and its copy again where they are not as they should be. Raises `OSError`, and `StoreBusy`
        after `wait` seconds (default: the store's)."""
        with exclusive(self.folder / LOCK, self.wait if wait is None else wait, disk=self.disk):
            for path in (self.folder / ABOUT, self.folder / ABOUT_COPY):
                if self.disk.read_file(path) != self._about_data:
                    self.disk.write_file(path, self._about_data, sync=self.durability != "off")
                    if self.disk.stat(self.folder / INDEX) is not None:  # else it was never there: its maker died
                        self.repairs.add("about", f"{path.name} was damaged or missing; it was written from its copy")

    def _create(self, key: bytes | None) -> dict[str, Any]:
        self.disk.make_folder(self.folder / "packs")
        sync = self.durability != "off"
        with exclusive(self.folder / LOCK, self.wait, disk=self.disk):
            about = read_about(self.folder / ABOUT, self.disk) or read_about(self.folder / ABOUT_COPY, self.disk)
            if about is None:
                salt = os.urandom(16)
                check = Cipher(key).check_value(salt) if key is not None else None
                about = {"format": FORMAT, "store": salt.hex(), "key": check}
                # The copy first: once the first is there, the store exists and both are.
                self.disk.write_file(self.folder / ABOUT_COPY, about_bytes(about), sync=sync)
                self.disk.write_file(self.folder / ABOUT, about_bytes(about), sync=sync)
        return about

    # ------------------------------------------------------------------ reading

    def read_object(self, entry: Entry) -> memoryview | None:
        """The verified payload of an object, from its copy if need be; None when neither is whole."""
        for place in entry.places:
            found = self.packs.read(place, Kind(entry.kind), entry.key)
            if found is not None:
                if place != entry.places[0] or len(entry.places) < entry.copies:
                    self._hurt.add((Kind(entry.kind), entry.key))
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
        the index made again, for the packs may know better than it does. Raises `StoreUnavailable` while a pack is
        missing: it may hold what was not found."""
        for _ in range(_ATTEMPTS):
            before = self.look(Index.stamp)
            found = attempt()
            if found is not None:
                return found
            if self.look(Index.stamp) == before:
                break
        self._check_packs()
        self.repair()
        found = attempt()
        if found is not None:
            self.repairs.add("index", f"{self.folder / INDEX} did not lead to what was saved; it was made again")
        return found

    def missing_packs(self) -> list[Path]:
        """Packs that something was committed to, and whose files are not there. Raises `StoreUnavailable`."""
        sizes = self.look(Index.state).sizes
        return [self.packs.path(pack) for pack in sorted(sizes.keys() - self.packs.files().keys())]

    def _check_packs(self) -> None:
        for path in self.missing_packs():
            raise StoreUnavailable(path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))

    def context(self, name: str) -> Context:
        """The context called `name`. Raises `MemoryNotFound`, or `StoreError` when both copies of it are damaged."""
        label = self.names.label(name)
        row = self.look(lambda index: index.seek(label))
        if row is not None and self._readable(row) is None:
            self._check_packs()
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
        self.mend()
        return sorted(found, key=lambda item: (isinstance(item, StoreError), getattr(item, "name", "")))

    def read_context(self, row: ContextRow) -> Context:
        """The context of a row, from the index or from its pack. Raises `StoreError` when neither copy is whole."""
        context = self._readable(row)
        if context is not None:
            return context
        raise StoreError(f"the record of context {row.label.hex()[:12]} is damaged; `foveal verify` says more")

    def is_readable(self, row: ContextRow) -> bool:
        """Whether a copy of a context's record is whole."""
        return self._readable(row) is not None

    def _readable(self, row: ContextRow) -> Context | None:
        for number, raw in enumerate(self.records_of(row)):
            context = self.parse_context(raw)
            if context is not None:
                if number or len(row.places) < 2:
                    self._hurt.add((Kind.CONTEXT, row.label))
                return context
        return None

    def records_of(self, row: ContextRow) -> Iterator[Buffer]:
        """All copies of a context's record, unverified: the index's, and those in packs when they are asked for."""
        yield row.record
        for place in row.places:
            raw = self.packs.raw(place)
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


def _nothing(writer: Writer) -> None:
    """A transaction that only mends what needs mending."""


def _all_contexts(index: Index) -> list[ContextRow]:
    index.check_contexts()
    return index.contexts()


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
