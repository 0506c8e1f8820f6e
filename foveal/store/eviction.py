"""Eviction: bytes are forgotten until a store keeps its limit, tokens never.

An evicted context is still there, and is computed again when it is used. So
pages are forgotten only where all tokens up to their end were read and are whole. Least valuable first: pages of few
contexts before those of many, then what was used longest ago, and ends before beginnings.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from foveal.config import PAGE_TOKENS
from foveal.process.logs import logger
from foveal.store import copies
from foveal.store.errors import StoreError
from foveal.store.files import Presence
from foveal.store.gc import collect, unreadable_contexts
from foveal.store.own_files import LIVE
from foveal.store.records import Kind
from foveal.store.rows import ContextRow, Entry
from foveal.store.store import Store
from foveal.store.writer import Writer

_log = logger(__name__)


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
    _log.info("eviction: %d pages and %d tails forgotten", result.pages, result.tails)
    return result


class _Eviction:
    def __init__(self, store: Store, tx: Writer, limit: int) -> None:
        self.store, self.index, self.limit, self.tx = store, tx.index, limit, tx
        self.nodes = {entry.id: entry for entry in self.index.objects.all(Kind.NODE)}
        self.pages = {entry.key: entry for entry in self.index.objects.all(Kind.PAGE)}
        self.tails = self.index.objects.all(Kind.TAIL)
        self.shares: dict[int, int] = defaultdict(int)
        self.used: dict[int, float] = defaultdict(float)
        self.kept: set[int] = set()

    def run(self) -> Evicted:
        for row in self.index.contexts.all():
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
            self.index.objects.remove([page.id])
            live -= page.span
            pages += 1
            for tail in self._useless(node):
                self.index.objects.forget(tail.id)
                live -= tail.span
                tails += 1
        for tail in sorted(self._loose_tails(), key=lambda entry: entry.position, reverse=True):
            if live <= self.limit:
                break
            if tail.parent not in provable:
                continue
            self.index.objects.forget(tail.id)
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
            if node.parent in provable and self.store.objects.read(node) is not None:
                provable.add(number)
        return provable

    def _note(self, row: ContextRow) -> None:
        """Count a context's pages as shared by it, and keep them if it is pinned or in use."""
        path = self.store.folder / LIVE / row.label.hex()
        try:
            used = max(row.used, path.stat().st_mtime)
        except OSError:
            used = row.used
        try:
            context = self.store.records.read(row)
        except StoreError:
            return
        keep = context.pinned or Presence.anywhere(path)
        head = self.index.objects.find(Kind.NODE, context.head)
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
