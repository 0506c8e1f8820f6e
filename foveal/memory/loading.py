"""A memory out of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from foveal.engine import Engine, RunningAgain
from foveal.memory.facts import Facts
from foveal.memory.options import tail_distance
from foveal.store import contexts, loading
from foveal.store.errors import CorruptMemory
from foveal.store.objects import Context
from foveal.store.store import Store

if TYPE_CHECKING:
    from foveal.memory.memory import Memory

M = TypeVar("M", bound="Memory")


def load(kind: type[M], engine: Engine, store: Store, context: Context) -> M:
    """The memory, a `kind`, that `context` is. Errors are those of `Memory.load`."""
    contexts.check_fingerprint(context, engine.fingerprint)
    facts = Facts.saved_in(context)
    chunk = engine.batch.scheduler.chunk
    distance = tail_distance(facts.tail_every, engine.pool.layout, chunk)
    places = contexts.read_map(store, context)
    if places.tokens != context.length:
        raise CorruptMemory(context.name, "it was saved without a source map")
    runner = RunningAgain(engine)
    loaded = loading.load(store, context, engine.fingerprint, runner, chunk=chunk, tail_every=distance)
    memory = kind(
        engine,
        loaded.sequence,
        places,
        facts.source,
        facts.totals,
        name=context.name,
        created=context.created,
        tail_every=facts.tail_every,
    )
    memory.unread, memory.appending, memory.chat = facts.unread, facts.appending, facts.chat
    return memory
