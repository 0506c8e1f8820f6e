"""What loading found damaged or lost: never looked at again, and put back where it was computed once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal import cache
from foveal.checkpoint.identity import Fingerprint
from foveal.store.arrays import array_bytes
from foveal.store.chain import entries_of
from foveal.store.objects import Context
from foveal.store.records import Kind
from foveal.store.rows import Entry
from foveal.store.saving import save_sequence
from foveal.store.store import Store
from foveal.store.writer import Writer

if TYPE_CHECKING:
    from foveal.store.loading import Loaded


def put_back(store: Store, context: Context, loaded: Loaded, fingerprint: Fingerprint) -> None:
    """What was computed again, into the store: under the same keys where the bytes are the same."""

    def work(tx: Writer) -> None:
        row = tx.index.contexts.get(tx.names.label(context.name))
        if row is None or store.records.read(row) != context:
            return  # somebody saved it anew meanwhile
        mend(tx, context, loaded)
        saved = save_sequence(store, tx, loaded.sequence, fingerprint.digest, tails=context.keeps_tails)
        objects = [number for number in tx.uses(context) if tx.index.objects.kind(number) == Kind.MAP]
        renewed = context.replace(origin=loaded.sequence.origin, **saved.state)
        if renewed != context or tx.changed:
            tx.put_context(renewed, [*saved.objects, *objects])

    store.transact(work)


def mend(tx: Writer, context: Context, loaded: Loaded) -> None:
    """Never look at what was damaged again, and have the lost pages of `context` once more where they came out as they
    were."""
    for entry in loaded.damaged:
        quarantine(tx, entry)
    if loaded.exact:
        _refill(tx, loaded.sequence, context)


def quarantine(tx: Writer, entry: Entry) -> None:
    """Never look at a damaged record again. A tail keeps its number, which others may refer to, but lies nowhere."""
    current = tx.index.objects.find(Kind(entry.kind), entry.key)
    if current is None or current.extents != entry.extents:
        return
    tx.changed = True
    if entry.kind == Kind.PAGE:
        tx.index.objects.remove([entry.id])
    else:
        tx.index.objects.forget(entry.id)


def _refill(tx: Writer, sequence: cache.Sequence, context: Context) -> None:
    """Pages of the context that the store has lost and the sequence has."""
    chain = entries_of(tx.index, context)
    for (node, page), live in zip(chain, sequence.pages, strict=False):
        if page is None:
            tx.put(Kind.PAGE, node.key, array_bytes(live.data), position=node.position)
