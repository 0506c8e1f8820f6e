"""The one way to change a store, and the one way to look at its index.

A transaction takes the writer's lock, cuts off what a dead writer left, appends to the packs, syncs them, and commits
the index; only then is anything acknowledged, and anything that goes wrong on the way leaves the store as it was. What
is kept twice, and of which reading found one copy damaged, is made whole on the way. Looking takes no lock. An index
that is damaged, or gone, is made again from the packs on the spot.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from foveal.store import copies
from foveal.store.errors import IndexBehind, IndexDamaged, StoreBusy, StoreError
from foveal.store.files import exclusive
from foveal.store.index import Index
from foveal.store.index_file import INDEX, LOCK, IndexFile, is_full
from foveal.store.known import KnownPages
from foveal.store.own_files import OwnFiles
from foveal.store.packs import Packs
from foveal.store.repairs import Hurt
from foveal.store.rows import State
from foveal.store.writer import Writer

T = TypeVar("T")


class Transactions:
    """Those of one store. `writer` makes what a transaction's work is given, of an index and a serial; `hurt` is what
    is to be made whole; `known` learns of the pages that were saved. Safe to use from several threads."""

    def __init__(
        self,
        own: OwnFiles,
        packs: Packs,
        hurt: Hurt,
        known: KnownPages,
        durability: str,
        writer: Callable[[Index, int], Writer],
    ) -> None:
        self.own, self.packs, self.hurt, self.known, self.durability = own, packs, hurt, known, durability
        self.folder, self.disk = own.folder, own.disk
        self._writer = writer
        self._lock = threading.RLock()
        self._file = IndexFile(
            own.folder, packs, own.disk, durability, own.wait, own.repairs, lambda: self._attempt(_nothing)
        )

    def open(self) -> None:
        """Open the index, and cut off what a dead writer left. Raises `StoreError` and `OSError`; all is closed
        then."""
        with self._lock, contextlib.ExitStack() as opening:
            opening.callback(self.close)
            self._file.current()
            self._recover()
            opening.pop_all()

    def close(self) -> None:
        """Close the files. Pages that were loaded stay valid."""
        with self._lock:
            self._file.close()
            self.packs.close()

    @property
    def index(self) -> Index:
        """The index that is open. Raises `StoreError` when none is."""
        return self._file.opened()

    # ------------------------------------------------------------------ what callers do

    def transact(self, work: Callable[[Writer], T], *, wait: float | None = None, frees: bool = False) -> T:
        """See `Store.transact`. `wait`: seconds to wait for another writer (default: the store's)."""
        with self._lock:
            self.check_writable()
            try:
                with exclusive(self.folder / LOCK, self.own.wait if wait is None else wait, disk=self.disk):
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

    def look(self, work: Callable[[Index], T]) -> T:
        """See `Store.look`."""
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

    def check_writable(self) -> None:
        """Raises `StoreError` when this store can only be read. Not with the writer's lock held."""
        with self._lock:
            index = self._file.current()
            if index.read_only and os.access(self.folder, os.W_OK):  # what kept us from writing may be over
                index = self._file.reopened()
            self._check(index)

    def _check(self, index: Index) -> None:
        if index.read_only:
            raise StoreError(f"the store {self.folder} cannot be written to ({index.read_only})")

    def mend(self) -> None:
        """Make whole again what reading found damaged in one of its copies, if the store can be written to just now."""
        if self.hurt:
            with contextlib.suppress(StoreError):
                self.transact(_nothing, wait=0)

    def vacuum(self) -> None:
        """Give back the space of rows that were deleted from the index, as far as nobody is reading it."""
        with self._lock, contextlib.suppress(StoreError):
            self._file.current().shrink()

    def repair(self, problem: IndexDamaged | None = None) -> None:
        """See `Store.repair`."""
        with self._lock:
            if self._file.open is not None and self._file.open.in_transaction:
                raise problem or IndexDamaged(f"{self.folder / INDEX} does not lead to what was saved")
            self._file.repair(problem)

    # ------------------------------------------------------------------ one attempt

    def _attempt(self, work: Callable[[Writer], T]) -> T:
        index = self._file.current()
        self._check(index)
        index.begin()
        try:
            state = index.state()
            self._settle(state)
            writer = self._writer(index, state.serial)
            mended = self._make_whole(writer, everything=not state.complete)
            result = work(writer)
            self._commit(writer, state)
        except BaseException:
            with contextlib.suppress(StoreError):
                index.rollback()
            self.packs.abandon()
            self._trim()
            raise
        self.own.keep_reserve()
        for what, where in mended:
            self.own.repairs.add(what, where)
        for learned in writer.learned:
            self.known.add(*learned)
        for pack in writer.unlink:
            with contextlib.suppress(OSError):  # the next writer does it
                self.packs.unlink(pack)
        return result

    def _commit(self, writer: Writer, state: State) -> None:
        """The packs first, then the index: with its commit the change has happened."""
        if writer.changed:
            if self.durability != "off":
                self.packs.sync()
            dropped = tuple(writer.unlink)
            writer.index.commit(State(self.packs.sizes, self.packs.next_pack, state.serial + 1, dropped=dropped))
        else:
            writer.index.rollback()
        self.packs.end()

    def _make_whole(self, writer: Writer, *, everything: bool) -> list[tuple[str, str]]:
        """Write a second copy again of what is kept twice and was found with one; returns what was damaged. With
        `everything`, of all there is only one copy of: so it is when the index was made again."""
        mended = []
        for kind, key in sorted(self.hurt.take()):
            mended += copies.make_whole(writer, kind, key)
        if everything:
            writer.changed = True
            for kind, key in writer.index.singles():
                copies.make_whole(writer, kind, key)
        return mended

    def _make_room(self, *, all_of_it: bool) -> None:
        """Shorten the index's log; for what frees space, give up the reserve as well."""
        self.vacuum()
        if all_of_it:
            self.own.give_up_reserve()

    # ------------------------------------------------------------------ what dead writers left

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

    def _trim(self) -> None:
        """Give the space of a failed transaction back at once, if the disk lets us; the next writer does it anyway."""
        with contextlib.suppress(OSError, StoreError):
            state = self._file.current().state()
            self.packs.begin(state, self.packs.files(), own=True)


def _nothing(writer: Writer) -> None:
    """A transaction that only mends what needs mending."""
