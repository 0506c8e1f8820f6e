"""Is everything as it was written? Every byte of a store is read and compared, and every reference counted anew.

Nothing is changed unless that is asked for. A problem says which contexts it concerns and what will happen: a damaged
copy is replaced by the other one, a damaged page or tail is computed again from its tokens. What was mended since the
last time is told as well. What cannot be read just now is no problem of the store's: then there is no report.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from foveal.config import PAGE_TOKENS
from foveal.engine import Fingerprint
from foveal.memory.errors import IndexDamaged, StoreError, StoreUnavailable
from foveal.memory.store import copies
from foveal.memory.store.about import ABOUT, ABOUT_COPY, read_about
from foveal.memory.store.gc import collect, is_sound, lost_bytes
from foveal.memory.store.index import Index
from foveal.memory.store.index_file import INDEX
from foveal.memory.store.names import Names, checksum
from foveal.memory.store.objects import Context, Node, StoredTail
from foveal.memory.store.packs import Place
from foveal.memory.store.records import SAID, Kind
from foveal.memory.store.rows import ContextRow, Entry, GoneRow, State
from foveal.memory.store.store import RESERVE, Store
from foveal.memory.store.wal import log_problems
from foveal.memory.store.writer import Writer
from foveal.sources import SourceMap, SourceMapError

_ATTEMPTS = 3
"""How often a store that others change is checked before they are kept out."""


@dataclass(frozen=True)
class Problem:
    """What was found wrong: `what` ("page", "tail", "tokens", "source map", "record", "index", "pack", "about",
    "reserve"), where, and which `contexts` it concerns. `lost` says that nothing in the store can make it good,
    `mended` that it was made good already."""

    what: str
    where: str
    contexts: tuple[str, ...] = ()
    lost: bool = False
    mended: bool = False

    def __str__(self) -> str:
        of = f" of {', '.join(self.contexts)}" if self.contexts else ""
        end = " (lost)" if self.lost else " (mended)" if self.mended else ""
        return f"{self.what}{of}: {self.where}{end}"


@dataclass
class Report:
    """`objects` records of `nbytes` bytes were read, for `contexts` contexts. `lost` are the files that were given up
    and kept in the folder `lost`, with their bytes: no problem any more."""

    problems: list[Problem] = field(default_factory=list)
    contexts: int = 0
    objects: int = 0
    nbytes: int = 0
    lost: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return not self.problems


def verify(store: Store, names: Iterable[str] | None = None, *, repair: bool = False) -> Report:
    """Check the whole store, or the contexts called `names`. With `repair`, mend what can be mended.

    Raises `MemoryNotFound` for a name that is not there, `StoreUnavailable` when something cannot be read just now.
    """
    wanted = None if names is None else set(names)
    for name in wanted or ():
        store.context(name)
    try:
        return _verify(store, wanted, repair)
    except OSError as error:
        raise StoreUnavailable(Path(error.filename or store.folder), error) from error


def _verify(store: Store, wanted: set[str] | None, repair: bool) -> Report:
    checked = _check(store, wanted)
    if wanted is None:
        told = [Problem(what, where, mended=True) for what, where in store.repairs.told()]
        checked.report.problems[:0] = told
        checked.report.lost = lost_bytes(store)
    if repair and not checked.report.sound:
        _repair(store, checked)
    if wanted is None:
        store.repairs.forget()
    return checked.report


def _check(store: Store, wanted: set[str] | None) -> _Checked:
    """A check against the index as it is. Others may change the store meanwhile, and what was moved is not damaged: so
    problems count only if nothing has changed; and if something always has, nobody is let in the last time."""
    checked = _Checked(Report(), [])
    for _ in range(_ATTEMPTS):
        try:
            view = store.look(_View.of)
            checked = _Checking(store, view, wanted).run()
            if checked.report.sound or store.look(Index.stamp) == view.stamp:
                return checked
        except IndexDamaged as error:
            return _Checked(Report([Problem("index", str(error))]), [])
    with contextlib.suppress(StoreError):  # where it cannot be written to, the last attempt has to do
        return store.transact(lambda tx: _Checking(store, _View.of(tx.index), wanted).run())
    return checked


def _repair(store: Store, checked: _Checked) -> None:
    """Mend what was found; then, if that was not all, make the index again, which brings back what only it had lost."""
    try:
        store.mend_about()
        store.mend_reserve()
    except OSError as error:
        raise StoreError(f"cannot write to the store {store.folder}: {error}") from error
    for remake in (False, True):
        if remake:
            store.repair()
            checked = _check(store, None)
        bad = checked.bad
        store.transact(lambda tx, bad=bad: _mend(tx, bad))  # type: ignore[misc]
        if any(problem.what == "pack" for problem in checked.report.problems):
            collect(store, threshold=1.0)
        checked = _check(store, None)
        if checked.report.sound:
            return


@dataclass(frozen=True)
class _Checked:
    """A report, and the entries of which a copy was not as written."""

    report: Report
    bad: list[Entry]


class _View(NamedTuple):
    """What an index says at one moment. `used`: context number -> object numbers; `references`: object number -> how
    many contexts and children refer to it."""

    stamp: tuple[int, int]
    sound: bool
    state: State
    contexts: list[ContextRow]
    gone: list[GoneRow]
    objects: list[Entry]
    used: dict[int, set[int]]
    references: Counter[int]

    @classmethod
    def of(cls, index: Index) -> _View:
        rows = index.contexts()
        used = {row.id: set(index.used_by(row.id)) for row in rows}
        sound, references = is_sound(index), index.all_references()
        return cls(index.stamp(), sound, index.state(), rows, index.gone(), index.objects(), used, references)


class _Checking:
    """One pass over one view of the index. `bad` are the entries of which a copy was not as written."""

    def __init__(self, store: Store, view: _View, wanted: set[str] | None) -> None:
        self.store, self.view, self.wanted = store, view, wanted
        self.report = Report()
        self.bad: list[Entry] = []
        self.users: dict[int, set[str]] = defaultdict(set)
        self.counts: Counter[int] = Counter()
        self.entries = {entry.id: entry for entry in view.objects}
        self.by_key = {(entry.kind, entry.key): entry for entry in view.objects}

    def run(self) -> _Checked:
        if self.wanted is None:
            try:
                self._check_files()
            except OSError as error:
                raise StoreUnavailable(Path(error.filename or self.store.folder), error) from error
        for row in self.view.contexts:
            self._check_context(row)
        if self.wanted is None:
            self._check_references()
            self._check_deletions()
        for entry in self.entries.values():
            if self.wanted is None or self.users[entry.id]:
                self._check_object(entry)
        return _Checked(self.report, self.bad)

    def _problem(self, what: str, where: str, users: Iterable[str] = (), *, lost: bool = False) -> None:
        self.report.problems.append(Problem(what, where, tuple(sorted(users)), lost))

    def _check_files(self) -> None:
        for name in (ABOUT, ABOUT_COPY):
            if read_about(self.store.folder / name, self.store.disk) is None:
                self._problem("about", f"{name} is damaged or missing")
        if not self.view.sound:
            self._problem("index", f"{INDEX} is not sound")
        for problem in log_problems(self.store.folder / f"{INDEX}-wal", self.store.disk):
            self._problem("index", problem)
        reserve = self.store.disk.read_file(self.store.folder / RESERVE)
        if any(reserve or b""):
            self._problem("reserve", f"{RESERVE} does not hold zeros")
        files = self.store.packs.files()
        for pack, size in self.view.state.sizes.items():
            path = self.store.packs.path(pack)
            if pack not in files:
                self._problem("pack", f"{path.name} is missing; put it back if it lies elsewhere")
            elif files[pack] < size:
                self._problem("pack", f"{path.name} has {files[pack]} bytes instead of {size}")
            elif not self.store.packs.sound(pack):
                self._problem("pack", f"the header of {path.name} is damaged")

    # ------------------------------------------------------------------ contexts

    def _check_context(self, row: ContextRow) -> None:
        used = self.view.used[row.id]
        try:
            context = self.store.read_context(row)
        except StoreError as error:
            self.counts.update(used)
            if self.wanted is None:
                self._problem("record", str(error), lost=True)
            return
        if self.wanted is not None and context.name not in self.wanted:
            return
        self.report.contexts += 1
        if self.store.parse_context(row.record) is None:
            self._problem("record", f"{INDEX} holds it damaged", [context.name])
        for place in row.places:
            raw = self.store.packs.raw(place)
            if raw is None or not self._is_record(raw, row):
                self._problem("record", self._where(place), [context.name])
        self._check_count(len(row.places), 2, Kind.CONTEXT, row.places[0], [context.name])
        chain = self._nodes(context)
        if len(chain) != context.pages or (chain and not self._proves(context, chain)):
            self._problem("tokens", "they do not lead to its head", [context.name], lost=True)
        kept = [(Kind.TAIL, key) for _, key in context.tails] + [(Kind.MAP, key) for _, key in context.maps]
        uses = {chain[-1].id} if chain else set()
        for kind, key in kept:
            entry = self.by_key.get((int(kind), key))
            if entry is not None:
                # A tail that was evicted when the index was made again may have come back with another context.
                uses |= {entry.id} if kind is Kind.MAP else {entry.id} & used
                self.users[entry.id].add(context.name)
            elif kind is Kind.MAP:  # a tail was evicted: an index that was made again does not know those
                self._problem(SAID[kind], "it is not in the index", [context.name], lost=True)
        self.counts.update(uses)
        if uses != used:
            self._problem("index", "it does not list what the context is made of", [context.name])
        for entry in chain:
            self.users[entry.id].add(context.name)
            page = self.by_key.get((int(Kind.PAGE), entry.key))
            if page is not None:
                self.users[page.id].add(context.name)

    def _is_record(self, raw: memoryview, row: ContextRow) -> bool:
        """Whether this is the record that the index has, or, where that one is damaged, a whole one."""
        whole = self.store.parse_context(row.record) is not None
        return bytes(raw) == row.record if whole else self.store.parse_context(raw) is not None

    def _where(self, place: Place) -> str:
        return f"{self.store.packs.path(place.pack).name} at {place.offset}"

    def _check_count(self, found: int, wanted: int, kind: Kind, place: Place, users: Iterable[str]) -> None:
        """What is kept twice, and is there once, has lost a copy to damage (or comes from an older version)."""
        if found < wanted:
            self._problem(SAID[kind], f"there is one copy only, in {self._where(place)}", users)

    def _nodes(self, context: Context) -> list[Entry]:
        """The nodes from the first page to the head, as far as they are there."""
        chain: list[Entry] = []
        entry = self.by_key.get((int(Kind.NODE), context.head)) if context.pages else None
        while entry is not None and len(chain) < context.pages:
            chain.append(entry)
            entry = self.entries.get(entry.parent)
        return chain[::-1]

    def _proves(self, context: Context, chain: list[Entry]) -> bool:
        names = Names.of(context.tenant)
        root = names.root(_digest(context), context.origin)
        parent, name = root, root
        for number, entry in enumerate(chain, start=1):
            payload = self.store.read_object(entry)
            node = None if payload is None else Node.from_bytes(payload)
            if node is None or node.position != number * PAGE_TOKENS or node.parent != parent:
                return False
            name = names.page_name(name, node.tokens)
            parent = names.node_key(parent, name, node.digest)
            if parent != entry.key or name != entry.name:
                return False
        return True

    # ------------------------------------------------------------------ objects and references

    def _check_object(self, entry: Entry) -> None:
        kind, good = Kind(entry.kind), 0
        if not entry.pack:  # evicted, or quarantined: a tail is computed again when it is needed
            if kind is not Kind.TAIL:
                self._problem(SAID[kind], "both copies were damaged", self.users[entry.id], lost=True)
            return
        for place in entry.places:
            payload = self.store.packs.read(place, kind, entry.key)
            self.report.objects += 1
            self.report.nbytes += place.span
            self.store.packs.passed(place.span)
            if payload is None or not self._fits(entry, payload):
                last = self._is_last(entry, place, good)
                self._problem(SAID[kind], self._where(place), self.users[entry.id], lost=last)
            elif not self.store.packs.is_padded(place):
                self._problem(SAID[kind], f"{self._where(place)}: what fills it up is not zeros", self.users[entry.id])
            else:
                good += 1
        self._check_count(len(entry.places), entry.copies, kind, entry.places[0], self.users[entry.id])
        if good < entry.copies:
            self.bad.append(entry)

    def _is_last(self, entry: Entry, place: Place, good: int) -> bool:
        """Whether with this copy the object is lost: pages and tails are not, they are computed again."""
        return entry.kind in (Kind.NODE, Kind.MAP) and place == entry.places[-1] and not good

    def _fits(self, entry: Entry, payload: memoryview) -> bool:
        """Whether a sound record is what its place in the index says."""
        if entry.kind == Kind.NODE:
            return Node.from_bytes(payload) is not None
        if entry.kind == Kind.PAGE:
            owner = self.by_key.get((int(Kind.NODE), entry.key))
            stored = self.store.read_object(owner) if owner is not None else None
            node = None if stored is None else Node.from_bytes(stored)
            return node is None or checksum(payload) == node.digest
        if entry.kind == Kind.TAIL:
            return StoredTail.from_bytes(payload) is not None
        try:
            SourceMap.from_bytes(bytes(payload))
        except SourceMapError:
            return False
        return True

    def _check_references(self) -> None:
        """Count all references anew: from contexts, and from children."""
        for entry in self.entries.values():
            if entry.kind == Kind.NODE and entry.parent:
                self.counts[entry.parent] += 1
        for number, entry in self.entries.items():
            said = self.view.references[number]
            if entry.kind != Kind.PAGE and self.counts[number] != said:
                self._problem("index", f"object {number} is referred to {self.counts[number]} times, it says {said}")
            if entry.kind != Kind.PAGE and not self.counts[number]:
                self._problem("index", f"object {number} ({SAID[Kind(entry.kind)]}) belongs to nothing")

    def _check_deletions(self) -> None:
        """Without its record a deletion is forgotten when the index is made again."""
        for row in self.view.gone:
            for place in row.places:
                if self.store.packs.read(place, Kind.GONE, row.label) is None:
                    self._problem("record", f"{self._where(place)}, of a deletion")
            self._check_count(len(row.places), 2, Kind.GONE, row.places[0], ())


def _digest(context: Context) -> str:
    try:
        return Fingerprint.from_dict(context.fingerprint).digest
    except ValueError:
        return ""


def _mend(tx: Writer, bad: list[Entry]) -> None:
    """Write the whole copy of an object anew, or have it forgotten when there is none."""
    for entry in bad:
        current = tx.index.find(Kind(entry.kind), entry.key)
        if current is None or current.places != entry.places:
            continue
        _mend_object(tx, current)
    for row in tx.index.contexts():
        _mend_context(tx, row)
    for gone in tx.index.gone():
        copies.make_gone_whole(tx, gone)


def _mend_object(tx: Writer, entry: Entry) -> None:
    kind = Kind(entry.kind)
    payload = tx.store.read_object(entry)
    if payload is not None and kind is not Kind.PAGE:
        tx.rewrite(entry, bytes(payload), copies=entry.copies)
    elif kind is Kind.PAGE:
        tx.changed = True
        tx.index.remove([entry.id])
    else:
        tx.changed = True
        tx.index.forget(entry.id)


def _mend_context(tx: Writer, row: ContextRow) -> None:
    """Its record in all places, and in the index what it is made of. A record that is damaged everywhere was told as
    lost; then the latest one before it that is whole takes its place, if the packs have one."""
    if not tx.store.is_readable(row):
        older = copies.older_record(tx, row.label)
        if older is None:
            return
        tx.put_context(older, tx.uses(older))
        return
    copies.make_context_whole(tx, row)
    context = tx.store.read_context(row)
    kept = tuple((at, key) for at, key in context.tails if tx.index.find(Kind.TAIL, key) is not None)
    if kept != context.tails or set(tx.index.used_by(row.id)) != set(tx.uses(context)):
        context = context.replace(tails=kept)
        tx.put_context(context, tx.uses(context))
