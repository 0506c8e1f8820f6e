"""What the store already has of a prompt.

The pages decide, and nothing else can veto a hit. The longest chain of stored pages that agrees with the tokens is
found by their names, and behind it an exact end of something that was saved; where no tail lies, the window is run
again (`foveal.store.loading`). What cannot be found, or is not as it was written, makes the hit shorter, or is computed
again: the answer is the one that a prompt without a store has.
"""

from __future__ import annotations

import contextlib

import numpy as np

from foveal import cache
from foveal.cache.replay import OnReplay
from foveal.checkpoint.identity import Fingerprint
from foveal.config import PAGE_TOKENS
from foveal.formats import Array
from foveal.store.arrays import token_bytes
from foveal.store.errors import StoreError
from foveal.store.index import Index
from foveal.store.loading import Loaded, Runner, load_sequence
from foveal.store.mending import mend
from foveal.store.objects import Context
from foveal.store.records import Kind
from foveal.store.rows import Entry
from foveal.store.store import Store

WORTH = 4096
"""Loading looks at every page: behind so many tokens that are there already, a hit must be longer by one more token."""


def find_prefix(
    store: Store,
    tokens: Array,
    fingerprint: Fingerprint,
    *,
    grain: int = 1,
    most: int | None = None,
    after: cache.Sequence | None = None,
    present: bool = False,
) -> Context | None:
    """The longest stored beginning of `tokens` (integers [n]), as a context without a name; None when there is none.

    It ends behind a full page, or where something that was saved ended, at `most` tokens or before; and, with `grain`,
    at a multiple of that many tokens unless it is all of them. `after`: a sequence of the first of these tokens; only
    what is longer counts, and only what has the same origin: without one, what was computed here. `present`: it ends
    before the first page that was evicted.
    """
    most = len(tokens) if most is None else most
    search = _Search(
        store,
        tokens.astype(np.int32, copy=False),
        fingerprint,
        grain,
        most,
        present,
        after.origin if after is not None else "",
    )
    return store.look(lambda index: search.run(index, after))


def load_prefix(
    store: Store,
    tokens: Array,
    fingerprint: Fingerprint,
    runner: Runner,
    *,
    chunk: int,
    grain: int = 1,
    most: int | None = None,
    after: cache.Sequence | None = None,
    tail_every: int | None = None,
    progress: OnReplay | None = None,
) -> Loaded | None:
    """A sequence that holds the longest stored beginning of `tokens` (see `find_prefix`); None when there is none.
    `progress` is told of a replay."""
    found = find_prefix(store, tokens, fingerprint, grain=grain, most=most, after=after, present=True)
    if found is None:
        return None
    loaded = load_sequence(
        store, found, fingerprint.digest, runner, chunk=chunk, tail_every=tail_every, progress=progress
    )
    if loaded.damaged:
        with contextlib.suppress(StoreError):  # a store that cannot be written to is still read
            store.transact(lambda tx: mend(tx, found, loaded))
    return loaded


class _Search:
    """One search; `run` may be done twice, on another index."""

    def __init__(
        self,
        store: Store,
        tokens: Array,
        fingerprint: Fingerprint,
        grain: int,
        most: int,
        present: bool,
        origin: str,
    ) -> None:
        self.store, self.names, self.tokens = store, store.names, tokens
        self.fingerprint, self.grain, self.most, self.present = fingerprint, grain, most, present
        self.origin, self.root = origin, self.names.root(fingerprint.digest, origin)

    def run(self, index: Index, after: cache.Sequence | None) -> Context | None:
        held = after.length if after is not None else 0
        count, last, name = self._known(index, after)
        deeper = self._deeper(index, count, last, name)
        if (
            last is not None
            and not deeper
            and all(tail.position <= held for tail in index.objects.tails_behind(last.id))
        ):
            return None  # the common case: nothing of what follows is stored
        chain = [node for node, _ in index.objects.chain(last.id, count)] if last is not None else []
        chain += deeper
        if self.present:
            chain = self._present(index, chain)
        tails = self._tails(index, chain)
        length = max(end for end in (len(chain) * PAGE_TOKENS, *(position for position, _ in tails)))
        if length < len(self.tokens):
            length -= length % self.grain
        if length < held + 1 + held // WORTH:
            return None
        full = length // PAGE_TOKENS
        return Context(
            name="",
            tenant=self.names.tenant,
            fingerprint=self.fingerprint.to_dict(),
            length=length,
            head=chain[full - 1].key if full else self.root,
            rest=tuple(self.tokens[full * PAGE_TOKENS : length].tolist()),
            tails=tuple(sorted((position, key) for position, key in tails if position <= length)),
            origin=self.origin,
        )

    def _deeper(self, index: Index, count: int, last: Entry | None, name: bytes) -> list[Entry]:
        """The nodes behind `last`, that of page number `count`, whose names are those of the tokens. Of twins, those
        that lead furthest."""
        levels: list[list[Entry]] = []
        above = {last.id if last is not None else 0}
        for start in range(count * PAGE_TOKENS, self.most - PAGE_TOKENS + 1, PAGE_TOKENS):
            name = self.names.page_name(name, token_bytes(self.tokens[start : start + PAGE_TOKENS]))
            level = [entry for entry in index.objects.named(Kind.NODE, name) if entry.parent in above]
            if not level:
                break
            levels.append(level)
            above = {entry.id for entry in level}
        found: list[Entry] = []
        for level in reversed(levels):
            wanted = found[-1].parent if found else level[0].id
            found.append(next(entry for entry in level if entry.id == wanted))
        return found[::-1]

    def _known(self, index: Index, after: cache.Sequence | None) -> tuple[int, Entry | None, bytes]:
        """How many pages of `after` are known to be in the store; the node of the last, and the page's name."""
        if after is None:
            return 0, None, self.root
        pages = after.pages
        for count in range(after.length // PAGE_TOKENS, 0, -1):
            known = self.store.known.node(pages[count - 1], self.root)
            entry = index.objects.find(Kind.NODE, known[0]) if known is not None else None
            if known is not None and entry is not None and entry.position == count * PAGE_TOKENS:
                return count, entry, known[1]
        return 0, None, self.root

    def _present(self, index: Index, chain: list[Entry]) -> list[Entry]:
        """The nodes up to the first whose page is neither in the store nor in memory."""
        if not chain:
            return []
        rows = index.objects.chain(chain[-1].id, len(chain))
        gone = (count for count, (node, page) in enumerate(rows) if page is None and not self.store.known.has(node.key))
        return chain[: next(gone, len(chain))]

    def _tails(self, index: Index, chain: list[Entry]) -> list[tuple[int, bytes]]:
        """Tails of this very past: those behind the last pages, back to a place to which `grain` may lead."""
        found: list[tuple[int, bytes]] = []
        for full in range(len(chain), -1, -1):
            node = chain[full - 1] if full else None
            for entry in index.objects.tails_behind(node.id if node is not None else 0):
                if entry.position > self.most:
                    continue
                if entry.position % self.grain and entry.position != len(self.tokens):
                    continue
                rest = token_bytes(self.tokens[full * PAGE_TOKENS : entry.position])
                if entry.name == self.names.tail_name(node.key if node is not None else self.root, rest):
                    found.append((entry.position, entry.key))
            if found and min(found)[0] <= len(chain) * PAGE_TOKENS // self.grain * self.grain:
                break
        return found
