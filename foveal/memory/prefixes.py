"""Prompts that begin like something in a store start from there.

engine = Engine.open("nano", prefixes=open_store().prefixes())
engine.generate(prompt).reused_tokens

Nothing is asked for and nothing can go wrong. What is found is what running the prompt would have given, and a store
that cannot be used is one in which nothing is found.
"""

from __future__ import annotations

from foveal import cache
from foveal.batch import Priority
from foveal.cache.replay import OnReplay
from foveal.engine import Engine, RunningAgain, Start
from foveal.formats import Array
from foveal.store.errors import StoreError
from foveal.store.prefix import load_prefix
from foveal.store.store import Store


class StoredPrefixes:
    """What `store` has of prompts, for `foveal.engine.Engine`: anything saved in it, whatever it was saved as."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def start(
        self,
        engine: Engine,
        tokens: Array,
        *,
        most: int | None = None,
        after: cache.Sequence | None = None,
        priority: Priority = Priority.INTERACTIVE,
        tail_every: int | None = None,
        progress: OnReplay | None = None,
    ) -> Start | None:
        """A sequence of the longest stored beginning of `tokens` (integers [n]), of `most` tokens at most; None when
        nothing longer than `after`, a sequence of the first of them, is stored. What has to be run again for it runs
        with `priority`; `progress` is told of a replay. Raises `foveal.cache.CacheFull`."""
        held = after.length if after is not None else 0
        if held % engine.grain:
            return None  # what was cut there has other last bits than what was not
        try:
            found = load_prefix(
                self.store,
                tokens,
                engine.fingerprint,
                RunningAgain(engine, replay=priority, recompute=priority),
                chunk=engine.batch.scheduler.chunk,
                grain=engine.grain,
                most=most,
                after=after,
                tail_every=tail_every,
                progress=progress,
            )
        except (StoreError, OSError):
            return None
        if found is None:
            return None
        return Start(found.sequence, found.sequence.length - held, found.replayed)
