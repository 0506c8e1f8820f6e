"""Prompts of a server, saved in its store behind the requests, so that they outlive the process.

One thread saves, the latest first state of each conversation only, and whatever hinders it is no failure: a prompt that
is not saved is read again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from foveal import cache
from foveal.engine import Engine
from foveal.memory.options import SourceOptions
from foveal.memory.progress import ReadTotals
from foveal.process.logs import logger
from foveal.store import contexts, gc, saving
from foveal.store.objects import Context
from foveal.store.store import Store

SOURCE = "foveal serve"
"""What saved prompts name as their source."""
WORTH = 512
"""Tokens from which on a prompt is saved."""
COLLECT_EVERY = 32
"""Prompts after which the space of those that were replaced is given back."""

_LOG = logger(__name__)


class SavedPrompts:
    """Saves sequences in `store`, `most` of them; the oldest are deleted. Safe to use from several threads."""

    def __init__(self, engine: Engine, store: Store, *, most: int = 64) -> None:
        self._engine, self._store, self._most = engine, store, most
        self._waiting: OrderedDict[str, tuple[cache.Sequence, Callable[[], None]]] = OrderedDict()
        self._names: OrderedDict[str, None] = OrderedDict.fromkeys(self._known())
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = self._busy = False
        self._count = 0

    def save(self, sequence: cache.Sequence, name: str, done: Callable[[], None]) -> str:
        """Have a sequence that is at rest saved under `name` (empty: a new one, which is returned). `done` is called
        when it is not needed any more."""
        if sequence.length < WORTH or self._closing:
            done()
            return name
        name = name or f"prompt-{token_hex(8)}"
        with self._changed:
            replaced = self._waiting.pop(name, None)
            self._waiting[name] = (sequence, done)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="foveal-prompts", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        if replaced is not None:
            replaced[1]()
        return name

    def give_up(self) -> bool:
        """Do not save the one that has waited longest; says whether any was waiting."""
        with self._changed:
            if not self._waiting:
                return False
            _, (_, done) = self._waiting.popitem(last=False)
            self._changed.notify_all()
        done()
        return True

    @property
    def busy(self) -> bool:
        """Whether any is waiting or being saved."""
        with self._changed:
            return bool(self._waiting) or self._busy

    def flush(self) -> None:
        """Wait until all is saved."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy)

    def close(self) -> None:
        """`flush`, and end the thread."""
        if self._thread is not None:
            self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
                if not self._waiting:
                    return
                name, (sequence, done) = self._waiting.popitem()
                self._busy = True
            try:
                try:
                    self._put(name, sequence)
                finally:
                    done()
            except Exception as error:  # whatever it is, prompts go on without being saved, and nobody waits for ever
                _LOG.warning("a prompt was not saved: %s", error)

    def _put(self, name: str, sequence: cache.Sequence) -> None:
        saving.save(self._store, name, sequence, self._engine.fingerprint, facts=self._facts(sequence))
        self._names[name] = None
        self._names.move_to_end(name)
        while len(self._names) > self._most:
            oldest, _ = self._names.popitem(last=False)
            contexts.delete(self._store, oldest)
        self._count += 1
        if self._count % COLLECT_EVERY == 0:
            gc.collect(self._store, threshold=0.5)

    def _facts(self, sequence: cache.Sequence) -> dict[str, Any]:
        engine = self._engine
        totals = ReadTotals(tokens=sequence.length, complete=True)
        return {
            "model": engine.name,
            "cache": str(engine.kv),
            "page_bytes": engine.pool.layout.page_bytes,
            "tail_every": "auto",
            "source": SourceOptions(SOURCE).to_dict(),
            "totals": totals.to_dict(),
        }

    def _known(self) -> list[str]:
        """The names of those saved before, the oldest first."""
        found = [
            (context.saved, context.name)
            for context in self._store.contexts()
            if isinstance(context, Context) and context.facts.get("source", {}).get("source") == SOURCE
        ]
        return [name for _, name in sorted(found)]
