"""Compaction: the space of what is dead is given back.

It copies what lives out of packs with much dead space, one pack in one transaction, and never touches a pack in
place. What it relies on it reads first: both copies of what is there twice come out whole. A pack of which something
could not be saved goes into the folder `lost`; it is not deleted.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveal.process.logs import logger
from foveal.store import copies
from foveal.store.errors import StoreError
from foveal.store.index import Index
from foveal.store.index_file import is_full
from foveal.store.pack_file import PACK_HEADER_BYTES
from foveal.store.records import Kind
from foveal.store.rows import Entry
from foveal.store.store import Store
from foveal.store.usage import disk_bytes
from foveal.store.writer import Writer

_log = logger(__name__)

SLACK = 4096
"""Dead bytes in a pack that are not worth copying it for."""


@dataclass(frozen=True)
class Collected:
    """`packs` were rewritten, and `freed` bytes given back. `kept` says of what space was not given back, and why."""

    packs: int
    freed: int
    kept: tuple[str, ...] = ()


def collect(store: Store, *, threshold: float = 0.25) -> Collected:
    """Give back the space of what is dead, of packs of which it is more than `threshold` (0 to 1).

    The index is checked first, and made again if it is not sound: nothing is thrown away on the word of a damaged one.
    Copying needs room for what lives in a pack (256 MiB at most); packs for which there is none are left as they are.
    So is everything while a context cannot be read at all, for nobody knows what belongs to it.

    Raises `StoreUnavailable` when a pack cannot be read now; nothing is lost then.
    """
    if not store.look(Index.is_sound):
        store.repair()
    unreadable = unreadable_contexts(store)
    if unreadable:
        return Collected(0, 0, tuple(f"the record of context {label} is damaged" for label in unreadable))
    if missing := store.missing_packs():  # what lived there may come back with it
        return Collected(0, 0, tuple(f"{path.name} is missing" for path in missing))
    before = disk_bytes(store)
    packs, kept = 0, []
    for pack in _wasteful(store, threshold):
        try:
            store.transact(lambda tx, pack=pack: _rewrite(tx, pack), frees=True)  # type: ignore[misc]
            packs += 1
        except StoreError as error:
            if not is_full(error):
                raise
            kept.append(f"there is no room to copy what lives in {store.packs.path(pack).name}")
    if packs and store.look(lambda index: not _dead(index)):
        store.transact(_drop_tombstones)
    if packs:
        store.transactions.vacuum()
    store.tidy()
    result = Collected(packs, before - disk_bytes(store), tuple(kept))
    _log.info("compaction: %d packs written again, %d bytes given back", packs, result.freed)
    return result


def unreadable_contexts(store: Store) -> list[str]:
    """The labels (hexadecimal, shortened) of contexts of which no copy of the record is whole."""

    def find(index: Index) -> list[str]:
        return [row.label.hex()[:12] for row in index.contexts.all() if store.records.find(row) is None]

    return store.look(find)


def empty_lost(store: Store) -> int:
    """Delete what lies in the folder `lost`, for good; returns its bytes. Raises `StoreError`."""
    found = store.packs.lost.sizes()
    store.transact(lambda tx: store.packs.lost.empty(list(found)))
    return sum(found.values())


def _dead(index: Index) -> dict[int, int]:
    """Pack -> bytes that nothing refers to, where there are any."""
    live = index.live_bytes()
    sizes = index.state().sizes
    dead = {pack: size - PACK_HEADER_BYTES - live.get(pack, 0) for pack, size in sizes.items()}
    return {pack: count for pack, count in dead.items() if count > 0}


def _wasteful(store: Store, threshold: float) -> list[int]:
    def find(index: Index) -> list[int]:
        sizes = index.state().sizes
        found = {pack: dead for pack, dead in _dead(index).items() if dead > max(SLACK, threshold * sizes[pack])}
        return sorted(found, key=lambda pack: sizes[pack] - found[pack])

    wasteful = store.look(find)
    unsound = [pack for pack in store.packs.files() if not store.packs.sound(pack)]
    return [*wasteful, *(pack for pack in unsound if pack not in wasteful)]


def _rewrite(tx: Writer, pack: int) -> None:
    """Copy what lives in `pack` to another one, and delete it; or keep it in `lost`, if anything was damaged."""
    if pack not in tx.packs.sizes:
        return
    tx.changed = True
    damaged = bool(tx.packs.gaps(pack, tx.packs.sizes[pack]))
    tx.packs.drop(pack)
    for entry in tx.index.objects.lying_in(pack):
        damaged = not _move(tx, entry, pack) or damaged
        tx.packs.maps.passed(entry.span)
    for row in tx.index.contexts.all():
        if any(extent.pack == pack for extent in row.extents):
            damaged = bool(copies.make_context_whole(tx, row, leaving=pack)) or damaged
    for gone in tx.index.contexts.gone():
        if any(extent.pack == pack for extent in gone.extents):
            damaged = bool(copies.make_gone_whole(tx, gone, leaving=pack)) or damaged
    if damaged:
        tx.packs.give_up(pack)
    tx.unlink.append(pack)


def _move(tx: Writer, entry: Entry, pack: int) -> bool:
    """Copy an object out of `pack`; whether all its copies were whole."""
    kind, found = Kind(entry.kind), copies.whole(tx.packs, entry)
    if not found.good:  # damaged in all copies: it is a miss, and computed again when it is needed
        if kind is Kind.PAGE:
            tx.index.objects.remove([entry.id])
        else:
            tx.index.objects.forget(entry.id)
        return False
    raw = tx.packs.raw(found.good[0])
    assert raw is not None
    kept = [extent for extent in found.good if extent.pack != pack]
    extents = [*kept, *(tx.packs.copy(raw) for _ in range(entry.copies - len(kept)))]
    tx.index.objects.move(entry.id, *extents)
    return not found.bad


def _drop_tombstones(tx: Writer) -> None:
    """No pack holds an outdated record any more, so nothing has to be remembered as deleted."""
    if not _dead(tx.index):
        tx.changed = True
        tx.index.execute("DELETE FROM gone")
