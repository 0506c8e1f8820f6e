"""A sequence into the store: the pages it has not got, and its tails.

Saving starts behind the last page that the store knows already, so its cost is that of what came since, however long
the context is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveal import cache
from foveal.checkpoint.identity import Fingerprint
from foveal.config import PAGE_TOKENS
from foveal.formats import Array
from foveal.sources import SourceMap
from foveal.store import contexts, maps
from foveal.store.arrays import array_bytes, pack_arrays, token_bytes
from foveal.store.errors import Conflict, NameExists, StoreError
from foveal.store.hashes import checksum
from foveal.store.objects import Context, Node, StoredTail, now
from foveal.store.records import Kind
from foveal.store.rows import ContextRow
from foveal.store.store import Store
from foveal.store.writer import Writer


@dataclass(frozen=True)
class Saved:
    """A sequence in the store: what a `Context` needs, and `objects`, the numbers of what it uses."""

    length: int
    head: bytes
    rest: tuple[int, ...]
    tails: tuple[tuple[int, bytes], ...]
    objects: tuple[int, ...]

    @property
    def state(self) -> dict[str, Any]:
        """What a `Context` says of it."""
        return {"length": self.length, "head": self.head, "rest": self.rest, "tails": self.tails}


@dataclass(frozen=True)
class _Known:
    """A page's node: its key and name, and its number in the index."""

    key: bytes
    name: bytes
    number: int


def save(
    store: Store,
    name: str,
    sequence: cache.Sequence,
    fingerprint: Fingerprint,
    *,
    source_map: SourceMap | None = None,
    facts: Mapping[str, Any] | None = None,
    created: str = "",
    parent: str = "",
    forked_at: int = 0,
    tails: bool = True,
    onto: Context | None = None,
    new: bool = False,
) -> Context:
    """Save `sequence` under `name`, in place of an older context of that name, whose pin, labels and (unless
    `parent` and `forked_at` say another) lineage it keeps.

    Whose bytes they are (`Sequence.origin`) is kept. Only what the store has not got is written. `tails` off keeps no
    tail: loading then runs all tokens again. `onto`: save only if the older context still has the tokens of this one;
    `new`: only if there is none. Raises `Conflict` or `StoreError` when that is not so, `StoreBusy`, and `StoreError`
    when the disk refuses; an older context is then untouched.
    """
    let_go_of(store, sequence.pool)

    def work(tx: Writer) -> Context:
        saved = save_sequence(store, tx, sequence, fingerprint.digest, tails=tails)
        kept, numbers = contexts.put_maps(tx, maps.split(source_map) if source_map is not None else [])
        row = tx.index.contexts.get(tx.names.label(name))
        if new and row is not None:
            raise NameExists(name)
        old = _older(store, row)
        if onto is not None and (old is None or not contexts.same_tokens(old, onto)):
            raise Conflict(name, contexts.head_of(store, old) if old is not None else "")
        base = old or Context(name, tx.names.tenant, fingerprint.to_dict(), 0, b"")
        context = base.replace(
            fingerprint=fingerprint.to_dict(),
            origin=sequence.origin,
            maps=kept,
            created=created or base.created or now(),
            saved=now(),
            keeps_tails=tails,
            parent=parent or base.parent,
            forked_at=forked_at or base.forked_at,
            facts=dict(facts if facts is not None else base.facts),
            **saved.state,
        )
        tx.put_context(context, [*saved.objects, *numbers])
        return context

    return store.transact(work)


def _older(store: Store, row: ContextRow | None) -> Context | None:
    """The context of a row; a damaged one is simply replaced, as if there were none."""
    with contextlib.suppress(StoreError):
        return None if row is None else store.records.read(row)
    return None


def let_go_of(store: Store, pool: cache.PagePool) -> None:
    """Let the pool's pager, if it has one, let go of what is mapped of the store. Raises `StoreError` for an encrypted
    store: its pages would have to lie in memory, or on the disk as they are."""
    if pool.pager is None:
        return
    if store.cipher is not None:
        raise StoreError(
            f"the store {store.folder} is encrypted: its pages must be decrypted into memory and cannot be let go of; "
            "leave the memory limit out"
        )
    store.packs.maps.let_go_by(pool.pager)


def save_sequence(store: Store, tx: Writer, sequence: cache.Sequence, fingerprint: str, *, tails: bool = True) -> Saved:
    """Put what `sequence` is made of into the store, as far as it is not there. `tails` off keeps none at all.

    `fingerprint` is the digest of everything that its bytes depend on.
    """
    sequence.rollback()
    length, full = sequence.length, sequence.length // PAGE_TOKENS
    nodes = _nodes(store, tx, sequence.pages, full, tx.names.root(fingerprint, sequence.origin))
    rest = sequence.token_range(full * PAGE_TOKENS, length)
    kept = _tails(tx, sequence, nodes) if tails else {}
    objects = [number for _, number in kept.values()] + ([nodes[-1].number] if full else [])
    return Saved(
        length,
        nodes[-1].key,
        tuple(rest.tolist()),
        tuple((position, key) for position, (key, _) in sorted(kept.items())),
        tuple(objects),
    )


def _nodes(store: Store, tx: Writer, pages: cache.PageList, full: int, root: bytes) -> list[_Known]:
    """The nodes of the first `full` pages, behind the root; those before the last known one are left out (but the
    root)."""
    nodes = [_Known(root, root, 0)]
    start = 0
    for count in range(full, 0, -1):
        known = store.known.node(pages[count - 1], root)
        entry = tx.index.objects.find(Kind.NODE, known[0]) if known is not None else None
        if known is not None and entry is not None and entry.position == count * PAGE_TOKENS:
            nodes.append(_Known(*known, entry.id))
            start = count
            break
    for number in range(start, full):
        nodes.append(_put_page(tx, nodes[-1], pages[number], (number + 1) * PAGE_TOKENS, root))
    return nodes


def _put_page(tx: Writer, parent: _Known, page: cache.Page, position: int, root: bytes) -> _Known:
    if page.tokens is None:
        raise cache.CacheError("an open page was to be saved as a full one")
    tokens, data = token_bytes(page.tokens), array_bytes(page.data)
    digest = checksum(data)
    name = tx.names.page_name(parent.name, tokens)
    key = tx.names.node_key(parent.key, name, digest)
    node = Node(parent.key, name, digest, position, tokens)
    number = tx.put(Kind.NODE, key, node.to_bytes(), copies=2, name=name, parent=parent.number, position=position)
    tx.put(Kind.PAGE, key, data, digest=digest, position=position)
    tx.learned.append((page, key, name, root))
    return _Known(key, name, number)


# ---------------------------------------------------------------------- tails


def _tails(tx: Writer, sequence: cache.Sequence, nodes: list[_Known]) -> dict[int, tuple[bytes, int]]:
    """Position -> key and number, of the tail at the end and of those the sequence keeps."""
    chain = _Chain(tx, nodes, sequence.pages, sequence.length // PAGE_TOKENS)
    kept = {}
    for tail in sequence.kept_tails:
        if 0 < tail.position < sequence.length:
            number = _put_tail(tx, chain, sequence, tail)
            if number is not None:
                kept[tail.position] = number
    if sequence.length:
        last = _put_tail(tx, chain, sequence, sequence.tail)
        assert last is not None
        kept[sequence.length] = last
    return kept


def _tensors(kept: cache.Tail | cache.LaterTail) -> dict[str, Array] | None:
    tail = kept.read() if isinstance(kept, cache.LaterTail) else kept
    return None if tail is None else tail.tensors()


class _Chain:
    """The node after any number of pages; earlier ones than the last known are looked up when they are asked for."""

    def __init__(self, tx: Writer, nodes: list[_Known], pages: cache.PageList, full: int) -> None:
        self._index, self._nodes, self._pages, self._known = tx.index, nodes, pages, tx.store.known
        self._full = full
        self._old: list[_Known] | None = None

    def after(self, pages: int) -> _Known:
        back = self._full - pages
        fresh = len(self._nodes) - 1
        if pages == 0:
            return self._nodes[0]
        if back < fresh:
            return self._nodes[-1 - back]
        known = self._known.node(self._pages[pages - 1], self._nodes[0].key)
        entry = self._index.objects.find(Kind.NODE, known[0]) if known is not None else None
        if known is not None and entry is not None and entry.position == pages * PAGE_TOKENS:
            return _Known(*known, entry.id)
        if self._old is None:
            first = self._full - fresh + 1
            found = self._index.objects.chain(self._nodes[1].number, first)
            self._old = [_Known(entry.key, entry.name, entry.id) for entry, _ in found]
        return self._old[pages - 1]


def _put_tail(
    tx: Writer, chain: _Chain, sequence: cache.Sequence, tail: cache.Tail | cache.LaterTail
) -> tuple[bytes, int] | None:
    """Key and number of the tail; None when it was elsewhere and is not to be had any more."""
    position = tail.position
    full, open_tokens = divmod(position, PAGE_TOKENS)
    node = chain.after(full)
    rest = token_bytes(sequence.token_range(full * PAGE_TOKENS, position))
    name = tx.names.tail_name(node.key, rest)
    if position < sequence.length:
        # The pages before it are the very same, and it is there only to go back to: any tail of the name will do.
        for entry in tx.index.objects.named(Kind.TAIL, name):
            if entry.pack:  # else it was evicted, or found damaged
                return entry.key, entry.id
    tensors = _tensors(tail)
    if tensors is None:
        return None
    open_page = memoryview(b"")
    if open_tokens:
        copy = sequence.pages[full].copy()
        copy.clear_after(sequence.layout, open_tokens)
        open_page = array_bytes(copy.data)
    data = StoredTail(name, node.key, position, rest, open_page, pack_arrays(tensors)).to_bytes()
    key = tx.names.tail_key(name, checksum(data))
    return key, tx.put(Kind.TAIL, key, data, name=name, parent=node.number, position=position)
