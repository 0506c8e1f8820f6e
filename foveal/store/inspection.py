"""One pass over a store: every byte of every record read and compared, and every reference counted anew.

It goes by one view of the index, of one moment; `foveal.store.verify` knows what to do about others who change the
store meanwhile.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from foveal.checkpoint.identity import Fingerprint
from foveal.sources import SourceMap, SourceMapError
from foveal.store.about import ABOUT, ABOUT_COPY, read_about
from foveal.store.chain import prove
from foveal.store.errors import StoreError, StoreUnavailable
from foveal.store.hashes import Names, checksum
from foveal.store.index import Index
from foveal.store.index_file import INDEX
from foveal.store.objects import Context, Node, StoredTail
from foveal.store.own_files import RESERVE
from foveal.store.records import SAID, Extent, Kind
from foveal.store.report import Problem, Report
from foveal.store.rows import ContextRow, Entry, GoneRow, State
from foveal.store.store import Store
from foveal.store.wal import log_problems


@dataclass(frozen=True)
class Checked:
    """A report, and the entries of which a copy was not as written."""

    report: Report
    bad: list[Entry]


class IndexView(NamedTuple):
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
    def of(cls, index: Index) -> IndexView:
        rows = index.contexts.all()
        used = {row.id: set(index.references.used_by(row.id)) for row in rows}
        sound, references = index.is_sound(), index.references.all()
        return cls(
            index.stamp(), sound, index.state(), rows, index.contexts.gone(), index.objects.all(), used, references
        )


class Inspection:
    """One pass over one view of the index. `bad` are the entries of which a copy was not as written."""

    def __init__(self, store: Store, view: IndexView, wanted: set[str] | None) -> None:
        self.store, self.view, self.wanted = store, view, wanted
        self.report = Report()
        self.bad: list[Entry] = []
        self.users: dict[int, set[str]] = defaultdict(set)
        self.counts: Counter[int] = Counter()
        self.entries = {entry.id: entry for entry in view.objects}
        self.by_key = {(entry.kind, entry.key): entry for entry in view.objects}

    def run(self) -> Checked:
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
        return Checked(self.report, self.bad)

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
            context = self.store.records.read(row)
        except StoreError as error:
            self.counts.update(used)
            if self.wanted is None:
                self._problem("record", str(error), lost=True)
            return
        if self.wanted is not None and context.name not in self.wanted:
            return
        self.report.contexts += 1
        if self.store.records.parse(row.record) is None:
            self._problem("record", f"{INDEX} holds it damaged", [context.name])
        for extent in row.extents:
            raw = self.store.packs.raw(extent)
            if raw is None or not self._is_record(raw, row):
                self._problem("record", self._where(extent), [context.name])
        self._check_count(len(row.extents), 2, Kind.CONTEXT, row.extents[0], [context.name])
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
        whole = self.store.records.parse(row.record) is not None
        return bytes(raw) == row.record if whole else self.store.records.parse(raw) is not None

    def _where(self, extent: Extent) -> str:
        return f"{self.store.packs.path(extent.pack).name} at {extent.offset}"

    def _check_count(self, found: int, wanted: int, kind: Kind, extent: Extent, users: Iterable[str]) -> None:
        """What is kept twice, and is there once, has lost a copy to damage (or comes from an older version)."""
        if found < wanted:
            self._problem(SAID[kind], f"there is one copy only, in {self._where(extent)}", users)

    def _nodes(self, context: Context) -> list[Entry]:
        """The nodes from the first page to the head, as far as they are there."""
        chain: list[Entry] = []
        entry = self.by_key.get((int(Kind.NODE), context.head)) if context.pages else None
        while entry is not None and len(chain) < context.pages:
            chain.append(entry)
            entry = self.entries.get(entry.parent)
        return chain[::-1]

    def _proves(self, context: Context, chain: list[Entry]) -> bool:
        names, read = Names.of(context.tenant), self.store.objects.read
        proved = prove(names, names.root(_digest(context), context.origin), chain, read)
        named = [name == entry.name for entry, (name, _) in zip(chain, proved, strict=False)]
        return len(named) == len(chain) and all(named)

    # ------------------------------------------------------------------ objects and references

    def _check_object(self, entry: Entry) -> None:
        kind, good = Kind(entry.kind), 0
        if not entry.pack:  # evicted, or quarantined: a tail is computed again when it is needed
            if kind is not Kind.TAIL:
                self._problem(SAID[kind], "both copies were damaged", self.users[entry.id], lost=True)
            return
        for extent in entry.extents:
            payload = self.store.packs.read(extent, kind, entry.key)
            self.report.objects += 1
            self.report.nbytes += extent.span
            self.store.packs.maps.passed(extent.span)
            if payload is None or not self._fits(entry, payload):
                last = self._is_last(entry, extent, good)
                self._problem(SAID[kind], self._where(extent), self.users[entry.id], lost=last)
            elif not self.store.packs.is_padded(extent):
                self._problem(SAID[kind], f"{self._where(extent)}: what fills it up is not zeros", self.users[entry.id])
            else:
                good += 1
        self._check_count(len(entry.extents), entry.copies, kind, entry.extents[0], self.users[entry.id])
        if good < entry.copies:
            self.bad.append(entry)

    def _is_last(self, entry: Entry, extent: Extent, good: int) -> bool:
        """Whether with this copy the object is lost: pages and tails are not, they are computed again."""
        return entry.kind in (Kind.NODE, Kind.MAP) and extent == entry.extents[-1] and not good

    def _fits(self, entry: Entry, payload: memoryview) -> bool:
        """Whether a sound record is what the index says of it."""
        if entry.kind == Kind.NODE:
            return Node.from_bytes(payload) is not None
        if entry.kind == Kind.PAGE:
            owner = self.by_key.get((int(Kind.NODE), entry.key))
            stored = self.store.objects.read(owner) if owner is not None else None
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
            for extent in row.extents:
                if self.store.packs.read(extent, Kind.GONE, row.label) is None:
                    self._problem("record", f"{self._where(extent)}, of a deletion")
            self._check_count(len(row.extents), 2, Kind.GONE, row.extents[0], ())


def _digest(context: Context) -> str:
    try:
        return Fingerprint.from_dict(context.fingerprint).digest
    except ValueError:
        return ""
