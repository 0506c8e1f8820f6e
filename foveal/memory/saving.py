"""A memory into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal.memory.facts import Facts
from foveal.store import saving
from foveal.store.objects import Context
from foveal.store.store import Store

if TYPE_CHECKING:
    from foveal.memory.memory import Memory


def save(memory: Memory, store: Store, name: str, *, onto: Context | None, new: bool) -> Context:
    """The memory as context `name` of `store`: see `foveal.store.saving.save`. It is no fork of what it replaces."""
    parent, at = memory.forked_from if memory.forked_from[0] != name else ("", 0)
    return saving.save(
        store,
        name,
        memory.sequence,
        memory.fingerprint,
        source_map=memory.places,
        facts=Facts.of(memory).to_dict(),
        created=memory.created,
        parent=parent,
        forked_at=at,
        tails=memory.tail_every != "none",
        onto=onto,
        new=new,
    )
