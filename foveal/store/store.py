"""A store: one folder, and the contexts in it.

There is one way to change a store, `transact`, and one way to look at its index, `look` (`transactions`). Objects and
the records of contexts are read by `objects` and `records` (`reading`); the folder's own files are `own`
(`own_files`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self, TypeVar

from foveal.store.about import open_cipher
from foveal.store.errors import IndexDoubted, MemoryNotFound, StoreError, StoreUnavailable
from foveal.store.files import Disk
from foveal.store.hashes import Names
from foveal.store.index import Index
from foveal.store.index_file import INDEX
from foveal.store.known import KnownPages
from foveal.store.objects import Context
from foveal.store.own_files import PACKS, OwnFiles
from foveal.store.packs import Packs
from foveal.store.reading import ContextReader, ObjectReader
from foveal.store.records import Kind
from foveal.store.repairs import Hurt, Repairs
from foveal.store.rows import ContextRow, Entry
from foveal.store.transactions import Transactions
from foveal.store.writer import Writer

Durability = Literal["full", "normal", "off"]
DURABILITIES: tuple[Durability, ...] = ("full", "normal", "off")

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
        self.disk = disk or Disk()
        self.known = KnownPages()
        self.repairs = Repairs(self.folder, self.disk)
        """What was mended and `verify` has not told yet."""
        self.own = OwnFiles(self.folder, self.disk, self.repairs, sync=durability != "off", wait=wait)
        try:
            about = self.own.open(key, create)
            self.id = bytes.fromhex(about["store"])
            self.cipher = open_cipher(about, key, self.folder)
            secret = self.cipher.secret(self.id) if self.cipher else blake2b(self.id, person=b"foveal-secret").digest()
            self.names = Names(secret[:32], tenant)
            self.packs = Packs(self.folder / PACKS, self.id, self.disk, self.cipher)
            hurt = Hurt()
            self.objects = ObjectReader(self.packs, hurt, self._find)
            self.records = ContextReader(self.packs, hurt, self.cipher)
            self.transactions = Transactions(self.own, self.packs, hurt, self.known, durability, self._writer)
            self.transactions.open()
        except OSError as error:
            raise StoreError(f"cannot open the store {self.folder}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.folder}>"

    def close(self) -> None:
        """Close its files. Pages that were loaded from it stay valid."""
        self.transactions.close()

    @property
    def wait(self) -> float:
        """Seconds to wait for another writer; may be set."""
        return self.own.wait

    @wait.setter
    def wait(self, seconds: float) -> None:
        self.own.wait = seconds

    # ------------------------------------------------------------------ changing it, looking at its index

    def transact(self, work: Callable[[Writer], T], *, frees: bool = False) -> T:
        """Do `work` as the only writer, all of it or nothing. It may be done twice: when the index proves damaged, or
        when the disk is full and a little room can be made. `frees`: it is there to give space back.

        Raises `StoreBusy`, `StoreError` when the disk refuses, and whatever `work` raises; the store is then as it was.
        """
        return self.transactions.transact(work, frees=frees)

    def check_writable(self) -> None:
        """Raises `StoreError` when this store can only be read. Not with the writer's lock held."""
        self.transactions.check_writable()

    def look(self, work: Callable[[Index], T]) -> T:
        """Do `work` on one consistent view of the index: within a transaction, on that of the transaction. It may be
        done twice, as in `transact`."""
        return self.transactions.look(work)

    @property
    def index(self) -> Index:
        """The index that is open. Raises `StoreError` when none is."""
        return self.transactions.index

    def repair(self) -> None:
        """Make the index again from the packs. Raises `StoreError` when the disk refuses.

        Within a transaction it raises `IndexDamaged`, for `transact` to make the index again and begin anew.
        """
        self.transactions.repair()

    def mend(self) -> None:
        """Make whole again what reading found damaged in one of its copies, if the store can be written to just now."""
        self.transactions.mend()

    def tidy(self) -> None:
        """Delete what processes that died left behind, and what said that deleted contexts were in use."""
        self.own.tidy(self.look(lambda index: {row.label.hex() for row in index.contexts.all()}))

    # ------------------------------------------------------------------ reading

    def context(self, name: str) -> Context:
        """The context called `name`. Raises `MemoryNotFound`, or `StoreError` when both copies of it are damaged."""
        label = self.names.label(name)
        row = self.look(lambda index: index.contexts.seek(label))
        if row is not None and self.records.find(row) is None:
            self._check_packs()
            self.repair()  # the packs may know better than the index
            row = self.look(lambda index: index.contexts.seek(label))
        if row is None:
            raise MemoryNotFound(f"there is no memory {name!r} in {self.folder}; `foveal ls` lists those there are")
        return self.records.read(row)

    def contexts(self) -> list[Context | StoreError]:
        """All contexts of this tenant, by name; what cannot be read is there as its error."""
        found: list[Context | StoreError] = []
        for row in self.look(_all_contexts):
            try:
                context = self.records.read(row)
                if context.tenant == self.names.tenant:
                    found.append(context)
            except StoreError as error:
                if row.tenant == self.names.tenant:
                    found.append(error)
        self.mend()
        return sorted(found, key=lambda item: (isinstance(item, StoreError), getattr(item, "name", "")))

    def insist(self, attempt: Callable[[], T | None]) -> T | None:
        """What `attempt` finds; tried again while others change the store, the last time with them kept out. Then
        once more with the index made again, for the packs may know better than it does. Raises `StoreUnavailable` while
        a pack is missing: it may hold what was not found."""
        for _ in range(_ATTEMPTS):
            before = self.look(Index.stamp)
            found = attempt()
            if found is not None:
                return found
            if self.look(Index.stamp) == before:
                break
        if not self.index.in_transaction:
            with contextlib.suppress(StoreError):  # where it cannot be written to, an index of our own will do
                return self._insist_alone(attempt)
        self._check_packs()
        self.repair()
        found = attempt()
        if found is not None:
            self._note_misled()
        return found

    def _insist_alone(self, attempt: Callable[[], T | None]) -> T | None:
        """`insist` while nobody else writes: what is found only with another index, this one did not lead to."""
        doubted = False

        def work(writer: Writer) -> T | None:
            nonlocal doubted
            found = attempt()
            if found is None and not doubted:
                self._check_packs()
                doubted = True
                raise IndexDoubted(f"{self.folder / INDEX} does not lead to what is looked for")
            return found

        found = self.transact(work)
        if found is not None and doubted:
            self._note_misled()
        return found

    def _note_misled(self) -> None:
        self.repairs.add("index", f"{self.folder / INDEX} did not lead to what was saved; it was made again")

    def missing_packs(self) -> list[Path]:
        """Packs that something was committed to, and whose files are not there. Raises `StoreUnavailable`."""
        sizes = self.look(Index.state).sizes
        return [self.packs.path(pack) for pack in sorted(sizes.keys() - self.packs.files().keys())]

    def _check_packs(self) -> None:
        for path in self.missing_packs():
            raise StoreUnavailable(path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))

    def _find(self, kind: Kind, key: bytes) -> Entry | None:
        return self.look(lambda index: index.objects.find(kind, key))

    def _writer(self, index: Index, serial: int) -> Writer:
        return Writer(self, index, serial)


def _all_contexts(index: Index) -> list[ContextRow]:
    index.contexts.check()
    return index.contexts.all()
