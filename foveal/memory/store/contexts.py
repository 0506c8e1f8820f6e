"""What is done with contexts: save, load, fork, delete, pin.

What is special here: each of them is one transaction, and none but save and load touches a page.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from foveal import cache
from foveal.config import PAGE_TOKENS
from foveal.engine import Fingerprint
from foveal.memory.errors import Conflict, CorruptMemory, FingerprintMismatch, StoreError
from foveal.memory.store import maps
from foveal.memory.store.files import Presence
from foveal.memory.store.index import Entry
from foveal.memory.store.loading import Loaded, Runner, let_go_of, load_sequence, read_chain
from foveal.memory.store.objects import Context, Node, tensor_bytes, token_bytes, token_tensor
from foveal.memory.store.records import Kind
from foveal.memory.store.saving import Saved, save_sequence
from foveal.memory.store.store import Store, Writer, now
from foveal.sources import SourceMap, SourceMapError


def save(
    store: Store,
    name: str,
    sequence: cache.Sequence,
    fingerprint: Fingerprint,
    *,
    places: SourceMap | None = None,
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

    Only what the store has not got is written. `tails` off keeps no tail: loading then runs all tokens again. `onto`:
    save only if the older context still has the tokens of this one; `new`: only if there is none.
    Raises `Conflict` or `StoreError` when that is not so, `StoreBusy`, and `StoreError` when the disk refuses; an older
    context is then untouched.
    """

    let_go_of(store, sequence.pool)

    def work(tx: Writer) -> Context:
        saved = save_sequence(store, tx, sequence, fingerprint.digest, tails=tails)
        kept, numbers = _put_maps(tx, maps.split(places) if places is not None else [])
        row = tx.index.context(tx.names.label(name))
        old = None
        if new and row is not None:
            raise StoreError(f"there is a memory {name!r} already; choose another name, or delete it first")
        if row is not None:
            with contextlib.suppress(StoreError):  # a damaged one is simply replaced
                old = store.read_context(row)
        if onto is not None and (old is None or not same_tokens(old, onto)):
            raise Conflict(name, head_of(store, old) if old is not None else "")
        base = old or Context(name, tx.names.tenant, fingerprint.to_dict(), 0, b"")
        context = base.replace(
            fingerprint=fingerprint.to_dict(),
            maps=kept,
            created=created or base.created or now(),
            saved=now(),
            keeps_tails=tails,
            parent=parent or base.parent,
            forked_at=forked_at or base.forked_at,
            facts=dict(facts if facts is not None else base.facts),
            **_state(saved),
        )
        tx.put_context(context, [*saved.objects, *numbers])
        return context

    return store.transact(work)


def head_of(store: Store, context: Context) -> str:
    """A short name for all tokens of a context, in this store (32 hexadecimal digits)."""
    rest = token_bytes(torch.tensor(context.rest, dtype=torch.int32))
    return store.names.tail_place(context.head, rest)[:16].hex()


def same_tokens(one: Context, other: Context) -> bool:
    """Whether two contexts of one store are made of the same pages and tokens."""
    return (one.length, one.head, one.rest) == (other.length, other.head, other.rest)


def _state(saved: Saved) -> dict[str, Any]:
    return {"length": saved.length, "head": saved.head, "rest": saved.rest, "tails": saved.tails}


def _put_maps(tx: Writer, parts: list[tuple[int, bytes]]) -> tuple[tuple[tuple[int, bytes], ...], list[int]]:
    keys = [(end, tx.names.map_key(data), data) for end, data in parts]
    numbers = [tx.put(Kind.MAP, key, data, copies=2) for _, key, data in keys]
    return tuple((end, key) for end, key, _ in keys), numbers


def check_fingerprint(context: Context, fingerprint: Fingerprint) -> None:
    """Raises `FingerprintMismatch` naming the parts that differ, `CorruptMemory` when the context states none."""
    try:
        made_with = Fingerprint.from_dict(context.fingerprint)
    except ValueError as error:
        raise CorruptMemory(context.name, str(error)) from error
    differing = fingerprint.differing(made_with)
    if differing:
        raise FingerprintMismatch(differing)


def load(
    store: Store,
    context: Context,
    fingerprint: Fingerprint,
    runner: Runner,
    *,
    chunk: int,
    tail_every: int | None = None,
) -> Loaded:
    """The sequence of `context`, as it was saved; what was damaged or evicted is computed again and put back.

    Raises `FingerprintMismatch`; `CorruptMemory` when the tokens themselves are lost; `CacheFull`.
    """
    check_fingerprint(context, fingerprint)
    loaded = load_sequence(store, context, fingerprint.digest, runner, chunk=chunk, tail_every=tail_every)
    if loaded.damaged or loaded.replayed:
        with contextlib.suppress(StoreError):  # a store that cannot be written to is still read
            _put_back(store, context, loaded, fingerprint)
    return loaded


def _put_back(store: Store, context: Context, loaded: Loaded, fingerprint: Fingerprint) -> None:
    """What was computed again, into the store: under the same keys where the bytes are the same."""

    def work(tx: Writer) -> None:
        row = tx.index.context(tx.names.label(context.name))
        if row is None or store.read_context(row) != context:
            return  # somebody saved it anew meanwhile
        for entry in loaded.damaged:
            _quarantine(tx, entry)
        if loaded.exact:
            _refill(tx, loaded.sequence, context)
        saved = save_sequence(store, tx, loaded.sequence, fingerprint.digest, tails=context.keeps_tails)
        objects = [number for number in tx.uses(context) if tx.index.kind(number) == Kind.MAP]
        renewed = context.replace(**_state(saved))
        if renewed != context or tx.changed:
            tx.put_context(renewed, [*saved.objects, *objects])

    store.transact(work)


def _quarantine(tx: Writer, entry: Entry) -> None:
    """Never look at a damaged record again. A tail keeps its number, which others may refer to, but lies nowhere."""
    current = tx.index.find(Kind(entry.kind), entry.key)
    if current is None or current.places != entry.places:
        return
    tx.changed = True
    if entry.kind == Kind.PAGE:
        tx.index.remove([entry.id])
    else:
        tx.index.forget(entry.id)


def _refill(tx: Writer, sequence: cache.Sequence, context: Context) -> None:
    """Pages of the context that the store has lost and the sequence has."""
    if not context.pages:
        return
    head = tx.index.find(Kind.NODE, context.head)
    chain = tx.index.chain(head.id, context.pages) if head is not None else []
    for (node, page), live in zip(chain, sequence.pages, strict=False):
        if page is None:
            tx.put(Kind.PAGE, node.key, tensor_bytes(live.data), position=node.position)


def read_map(store: Store, context: Context) -> SourceMap:
    """The source map of a context. Raises `CorruptMemory` when both copies of a part are damaged."""
    try:
        places = maps.join(read_parts(store, context))
    except SourceMapError as error:
        raise CorruptMemory(f"{context.name} (its source map)", str(error)) from error
    if context.maps and places.tokens != context.length:
        raise CorruptMemory(
            f"{context.name} (its source map)", f"it covers {places.tokens} tokens instead of {context.length}"
        )
    return places


def read_parts(store: Store, context: Context) -> list[bytes]:
    """The parts of a context's source map. Raises `CorruptMemory` when both copies of one are damaged."""
    return [_part(store, context, key) for _, key in context.maps]


def _part(store: Store, context: Context, key: bytes) -> bytes:
    """One part, for which the index is made again if need be."""
    data = _read_part(store, key)
    if data is None:
        store.repair()
        data = _read_part(store, key)
    if data is None:
        raise CorruptMemory(f"{context.name} (its source map)", "both copies are damaged")
    return data


def _read_part(store: Store, key: bytes) -> bytes | None:
    entry = store.look(lambda index: index.find(Kind.MAP, key))
    payload = None if entry is None else store.read_object(entry)
    if payload is None or store.names.map_key(bytes(payload)) != key:
        return None
    return bytes(payload)


# ---------------------------------------------------------------------- without a model


def fork(
    store: Store, name: str, new: str, *, at: int | None = None, facts: Mapping[str, Any] | None = None
) -> Context:
    """A second context over the first `at` tokens of context `name` (default: all). No page is read or copied.

    Raises `MemoryNotFound`, and `StoreError` when `new` exists already or `at` is not within the context.
    """
    base = store.context(name)
    length = base.length if at is None else at
    if not 0 < length <= base.length:
        raise StoreError(f"cannot fork {name} at token {length}: it has {base.length}; give --at 1 to {base.length}")
    head, rest = _end_at(store, base, length)
    parts = _cut_parts(store, base, length)

    def work(tx: Writer) -> Context:
        if tx.index.context(tx.names.label(new)) is not None:
            raise StoreError(f"there is a memory {new!r} already; choose another name, or delete it first")
        row = tx.index.context(tx.names.label(name))
        if row is None or store.read_context(row) != base:
            raise StoreError(f"memory {name} was changed while it was being forked; try again")
        kept, numbers = _put_maps(tx, parts[1])
        context = _forked(base, new, length, head, rest).replace(
            maps=(*parts[0], *kept), facts=dict(facts if facts is not None else base.facts)
        )
        tx.put_context(context, [*tx.uses(context.replace(maps=parts[0])), *numbers])
        return context

    return store.transact(work)


def _end_at(store: Store, base: Context, length: int) -> tuple[bytes, tuple[int, ...]]:
    """The last full page of the first `length` tokens of a context, and the tokens behind it."""
    full, behind = divmod(length, PAGE_TOKENS)
    if full == base.pages:
        return base.head, base.rest[:behind]
    entry = store.look(lambda index: index.ancestor(base.head, (full + (behind > 0)) * PAGE_TOKENS))
    if entry is not None and not behind:
        return entry.key, ()
    payload = None if entry is None else store.read_object(entry)
    node = None if payload is None else Node.from_bytes(payload)
    if node is not None:
        return node.parent, tuple(token_tensor(node.tokens)[:behind].tolist())
    chain = read_chain(store, base, Fingerprint.from_dict(base.fingerprint).digest)
    return chain.key_after(full), tuple(chain.tokens[full * PAGE_TOKENS : length].tolist())


def _forked(base: Context, new: str, length: int, head: bytes, rest: tuple[int, ...]) -> Context:
    tails = tuple((position, key) for position, key in base.tails if position <= length)
    return base.replace(
        name=new,
        length=length,
        head=head,
        rest=rest,
        tails=tails,
        created=now(),
        saved=now(),
        parent=base.name,
        forked_at=length,
        pinned=False,
        labels={},
    )


def _cut_parts(
    store: Store, base: Context, length: int
) -> tuple[tuple[tuple[int, bytes], ...], list[tuple[int, bytes]]]:
    """The parts of a source map that `length` tokens keep whole, and the one that has to be cut."""
    whole = tuple((end, key) for end, key in base.maps if end <= length)
    covered = whole[-1][0] if whole else 0
    if covered == length or len(whole) == len(base.maps):
        return whole, []
    data = _part(store, base, base.maps[len(whole)][1])
    return whole, [(length, maps.cut(data, length - covered))]


def delete(store: Store, name: str) -> None:
    """Delete a context, and whatever no other one refers to. Raises `MemoryNotFound`."""
    store.transact(lambda tx: tx.drop_context(name), frees=True)


def change(store: Store, name: str, **changes: Any) -> Context:
    """Change what is said of a context: `pinned`, `labels`, `facts`. Raises `MemoryNotFound`."""
    store.context(name)  # its error is better than ours

    def work(tx: Writer) -> Context:
        row = tx.index.context(tx.names.label(name))
        context = store.context(name) if row is None else store.read_context(row)
        context = context.replace(**changes)
        tx.put_context(context, tx.uses(context))
        return context

    return store.transact(work)


def presence(store: Store, name: str) -> Presence | None:
    """Says that context `name` is in use, so that it is not evicted; None where the store cannot be written to."""
    with contextlib.suppress(OSError):
        folder = store.folder / "live"
        store.disk.make_folder(folder)
        return Presence(folder / store.names.label(name).hex())
    return None
