"""Space: compaction, and eviction under a limit.

Compaction copies what lives out of packs with much dead space, one pack in one transaction, and never touches a pack in
place. What it relies on it reads first: both copies of what is there twice come out whole. A pack of which something
could not be saved goes into the folder `lost`; it is not deleted.

Eviction forgets bytes and never tokens: an evicted context is still there, and is computed again when it is used. So
pages are forgotten only where all tokens up to their end were read and are whole. Least valuable first: pages of few
contexts before those of many, then what was used longest ago, and ends before beginnings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from foveal.config import PAGE_TOKENS
from foveal.memory.errors import IndexDamaged, StoreError, StoreUnavailable
from foveal.memory.store import copies
from foveal.memory.store.files import Presence
from foveal.memory.store.index import Index
from foveal.memory.store.index_file import is_full
from foveal.memory.store.packs import PACK_HEADER_BYTES
from foveal.memory.store.records import Kind
from foveal.memory.store.rows import ContextRow, Entry
from foveal.memory.store.store import LIVE, Store
from foveal.memory.store.writer import Writer

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
    if not store.look(is_sound):
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
        store.vacuum()
    store.tidy()
    return Collected(packs, before - disk_bytes(store), tuple(kept))


def unreadable_contexts(store: Store) -> list[str]:
    """The labels (hexadecimal, shortened) of contexts of which no copy of the record is whole."""

    def find(index: Index) -> list[str]:
        return [row.label.hex()[:12] for row in index.contexts() if not store.is_readable(row)]

    return store.look(find)


def lost_bytes(store: Store) -> dict[str, int]:
    """Name -> bytes, of what lies in the folder `lost`. Raises `StoreUnavailable`."""
    try:
        return store.disk.sizes(store.packs.lost)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreUnavailable(store.packs.lost, error) from error


def empty_lost(store: Store) -> int:
    """Delete what lies in the folder `lost`, for good; returns its bytes. Raises `StoreError`."""
    found = lost_bytes(store)

    def work(tx: Writer) -> None:
        for name in found:
            store.disk.unlink(store.packs.lost / name)

    store.transact(work)
    return sum(found.values())


def disk_bytes(store: Store) -> int:
    """Bytes of all packs."""
    return sum(store.packs.files().values())


def is_sound(index: Index) -> bool:
    """Whether the index agrees with itself: its file, its references."""
    check = index.rows("PRAGMA integrity_check(1)")
    return check == [("ok",)] and not index.dangling() and not index.orphans()


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
    for entry in tx.index.lying_in(pack):
        damaged = not _move(tx, entry, pack) or damaged
        tx.packs.passed(entry.span)
    for row in tx.index.contexts():
        if any(place.pack == pack for place in row.places):
            damaged = bool(copies.make_context_whole(tx, row, leaving=pack)) or damaged
    for gone in tx.index.gone():
        if any(place.pack == pack for place in gone.places):
            damaged = bool(copies.make_gone_whole(tx, gone, leaving=pack)) or damaged
    if damaged:
        tx.packs.give_up(pack)
    tx.unlink.append(pack)


def _move(tx: Writer, entry: Entry, pack: int) -> bool:
    """Copy an object out of `pack`; whether all its copies were whole."""
    kind, found = Kind(entry.kind), copies.whole(tx.packs, entry)
    if not found.good:  # damaged in all copies: it is a miss, and computed again when it is needed
        if kind is Kind.PAGE:
            tx.index.remove([entry.id])
        else:
            tx.index.forget(entry.id)
        return False
    raw = tx.packs.raw(found.good[0])
    assert raw is not None
    kept = [place for place in found.good if place.pack != pack]
    places = [*kept, *(tx.packs.copy(raw) for _ in range(entry.copies - len(kept)))]
    tx.index.move(entry.id, *places)
    return not found.bad


def _drop_tombstones(tx: Writer) -> None:
    """No pack holds an outdated record any more, so nothing has to be remembered as deleted."""
    if not _dead(tx.index):
        tx.changed = True
        tx.index.execute("DELETE FROM gone")


# ---------------------------------------------------------------------- who uses what


@dataclass(frozen=True)
class Usage:
    """Bytes in the packs that only this context refers to, and that it shares with others."""

    own: int
    shared: int


def usage(store: Store) -> dict[str, Usage]:
    """Name -> bytes, of all contexts of this tenant that can be read."""
    return store.look(lambda index: _usage(store, index))


def _usage(store: Store, index: Index) -> dict[str, Usage]:
    entries = {entry.id: entry for entry in index.objects()}
    pages = {entry.key: entry for entry in entries.values() if entry.kind == Kind.PAGE}
    holders: dict[int, int] = defaultdict(int)
    held: list[tuple[ContextRow, list[Entry]]] = []
    for row in index.contexts():
        used = index.used_by(row.id)
        found = [entries[number] for number in used if number in entries]
        if len(found) < len(used):
            raise IndexDamaged(f"{index.path} refers to what it does not have")
        objects = [entry for entry in found if entry.kind != Kind.NODE]
        for node in _way_up(index, entries, found):
            objects += [node, *([pages[node.key]] if node.key in pages else [])]
        held.append((row, objects))
        for entry in objects:
            holders[entry.id] += 1
    result = {}
    for row, objects in held:
        if row.tenant != store.names.tenant:
            continue
        try:
            name = store.read_context(row).name
        except StoreError:
            continue
        own = sum(entry.span * len(entry.places) for entry in objects if entry.pack and holders[entry.id] == 1)
        total = sum(entry.span * len(entry.places) for entry in objects if entry.pack)
        result[name] = Usage(own + row.span, total - own)
    return result


def _way_up(index: Index, entries: dict[int, Entry], found: list[Entry]) -> Iterator[Entry]:
    """The node in `found` and those before it. Raises `IndexDamaged` where they do not lead to the first page."""
    node = next((entry for entry in found if entry.kind == Kind.NODE), None)
    while node is not None:
        yield node
        above = entries.get(node.parent)
        if node.parent and (above is None or above.kind != Kind.NODE or above.position >= node.position):
            raise IndexDamaged(f"{index.path} does not lead from a page to the one before it")
        node = above


# ---------------------------------------------------------------------- eviction


@dataclass(frozen=True)
class Evicted:
    """`pages` and `tails` were forgotten; `within` says whether the limit is kept now. It is not, when all that is left
    is pinned, in use, or tokens."""

    pages: int
    tails: int
    within: bool


def evict(store: Store, limit: int) -> Evicted:
    """Forget pages and tails until all records take at most `limit` bytes, then give their space back."""
    if limit < 0:
        raise StoreError(f"a store's limit is {limit} bytes; it must be 0 or more")
    if store.look(lambda index: sum(index.live_bytes().values())) <= limit:
        return Evicted(0, 0, True)
    if unreadable_contexts(store):  # nobody knows what they are made of
        return Evicted(0, 0, False)
    result = store.transact(lambda tx: _Eviction(store, tx, limit).run(), frees=True)
    collect(store, threshold=0.0)
    return result


class _Eviction:
    def __init__(self, store: Store, tx: Writer, limit: int) -> None:
        self.store, self.index, self.limit, self.tx = store, tx.index, limit, tx
        self.nodes = {entry.id: entry for entry in self.index.objects(Kind.NODE)}
        self.pages = {entry.key: entry for entry in self.index.objects(Kind.PAGE)}
        self.tails = self.index.objects(Kind.TAIL)
        self.shares: dict[int, int] = defaultdict(int)
        self.used: dict[int, float] = defaultdict(float)
        self.kept: set[int] = set()

    def run(self) -> Evicted:
        for row in self.index.contexts():
            self._note(row)
        live = sum(self.index.live_bytes().values())
        pages = tails = 0
        provable = self._provable()
        for node in sorted(self._candidates(), key=self._value):
            if live <= self.limit:
                break
            if node not in provable:
                continue
            page = self.pages.pop(self.nodes[node].key)
            self.index.remove([page.id])
            live -= page.span
            pages += 1
            for tail in self._useless(node):
                self.index.forget(tail.id)
                live -= tail.span
                tails += 1
        for tail in sorted(self._loose_tails(), key=lambda entry: entry.position, reverse=True):
            if live <= self.limit:
                break
            if tail.parent not in provable:
                continue
            self.index.forget(tail.id)
            live -= tail.span
            tails += 1
        self.tx.changed = self.tx.changed or bool(pages or tails)
        return Evicted(pages, tails, live <= self.limit)

    def _provable(self) -> set[int]:
        """The nodes whose tokens, and all before them, are there in a whole copy; a second one is written where it was
        damaged. Without its tokens a page could never be computed again."""
        provable = {0}
        for number, node in sorted(self.nodes.items(), key=lambda item: item[1].position):
            copies.make_object_whole(self.tx, node)
            if node.parent in provable and self.store.read_object(node) is not None:
                provable.add(number)
        return provable

    def _note(self, row: ContextRow) -> None:
        """Count a context's pages as shared by it, and keep them if it is pinned or in use."""
        place = self.store.folder / LIVE / row.label.hex()
        try:
            used = max(row.used, place.stat().st_mtime)
        except OSError:
            used = row.used
        try:
            context = self.store.read_context(row)
        except StoreError:
            return
        keep = context.pinned or Presence.anywhere(place)
        head = self.index.find(Kind.NODE, context.head)
        node = head.id if head is not None else 0
        for _ in range(context.pages):
            if node not in self.nodes:
                break
            self.shares[node] += 1
            self.used[node] = max(self.used[node], used)
            if keep:
                self.kept.add(node)
            node = self.nodes[node].parent
        if keep:
            self.kept.update(-number for number in self.tx.uses(context))

    def _candidates(self) -> list[int]:
        return [number for number, node in self.nodes.items() if number not in self.kept and node.key in self.pages]

    def _value(self, node: int) -> tuple[int, float, int]:
        return self.shares[node], self.used[node], -self.nodes[node].position

    def _useless(self, node: int) -> list[Entry]:
        """Tails directly behind a page that is gone."""
        return [tail for tail in self.tails if tail.parent == node and tail.pack and -tail.id not in self.kept]

    def _loose_tails(self) -> list[Entry]:
        """Tails of contexts that have no page left to give."""
        gone = {number for number, node in self.nodes.items() if node.key not in self.pages}
        return [
            tail
            for tail in self.tails
            if tail.pack
            and -tail.id not in self.kept
            and tail.parent not in gone
            and (tail.position < PAGE_TOKENS or tail.parent not in self.kept)
        ]
