"""What a memory holds, and whose turn it is."""

from __future__ import annotations

import datetime
import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from foveal import cache
from foveal.checkpoint.identity import Fingerprint
from foveal.engine import Engine
from foveal.memory.gathering import Reading
from foveal.memory.options import SourceOptions, TailEvery
from foveal.memory.progress import ReadTotals, Resumed
from foveal.memory.versions import Versions
from foveal.sources import SourceMap
from foveal.store import contexts
from foveal.store.files import Presence
from foveal.store.objects import Context
from foveal.store.store import Store

F = TypeVar("F", bound=Callable[..., Any])


def in_turn(method: F) -> F:
    """A method of a memory of which one runs at a time; one may call another."""

    @functools.wraps(method)
    def taking_turns(memory: MemoryBase, *arguments: Any, **options: Any) -> Any:
        with memory._turn:
            return method(memory, *arguments, **options)

    return cast(F, taking_turns)


class MemoryBase:
    """What a memory holds. `Memory` says what can be done with it."""

    def __init__(
        self,
        engine: Engine,
        sequence: cache.Sequence,
        places: SourceMap,
        options: SourceOptions,
        totals: ReadTotals,
        *,
        name: str = "",
        created: str = "",
        tail_every: TailEvery = "auto",
    ) -> None:
        self.engine = engine
        self.sequence = sequence
        self.places = places
        self.options = options
        self.totals = totals
        self.name = name
        self.created = created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.tail_every = tail_every
        self.forked_from: tuple[str, int] = ("", 0)
        """Name of the memory this one was forked from, and at which token."""
        self.problem = ""
        """Why reading ended early, when there was no more room: what was read until then is there."""
        self.unread: tuple[str, ...] = ()
        """Files of the source that are still to be read, in order."""
        self.appending = False
        """Whether a sync that appends was begun and is not finished."""
        self.chat: int | None = None
        """Of a conversation (`foveal.memory.conversation`): tokens of the memory that its turns stand behind."""
        self.store: Store | None = None
        """Where it is saved, or was loaded from: what that has is not read again."""
        self.resumed: Resumed | None = None
        """What was kept of an earlier read, when `MemoryStore.read` went on with it."""
        self.reused = 0
        """Tokens that were found in the store and not run, since this memory was made or loaded."""
        self.encodings: tuple[Reading, ...] = ()
        """Files that were not plain UTF-8 when the source was last looked at, since this memory was made or loaded."""
        self.notes: tuple[str, ...] = ()
        """What to tell of how its files were found then."""
        self._turn = threading.RLock()
        self._versions: Versions | None = None
        self._presence: Presence | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        if self.sequence.freed:
            return f"<Memory {self.name or self.options.source!r}: freed>"
        state = "" if self.complete else f" of {self.totals.tokens}"
        return f"<Memory {self.name or self.options.source!r}: {self.length}{state} tokens>"

    @property
    def length(self) -> int:
        """Tokens in the memory."""
        return self.sequence.length

    @property
    def complete(self) -> bool:
        """Whether all of the source was read; if not, `resume` goes on."""
        return self.totals.complete

    @property
    def origin(self) -> str:
        """ "" when its pages were computed on this machine; else the hash of the file that they were imported from."""
        return self.sequence.origin

    @property
    def fingerprint(self) -> Fingerprint:
        return self.engine.fingerprint

    @in_turn
    def nbytes(self) -> cache.CacheBytes:
        """Bytes held, by kind."""
        return self.sequence.nbytes()

    @in_turn
    def free(self) -> None:
        """Give the pages back, when no job runs on them any more; the memory cannot be used afterwards. Freeing it
        again does nothing."""
        self.engine.free(self.sequence)
        if self._presence is not None:
            self._presence.close()

    def _lies_in(self, store: Store, context: Context) -> None:
        """While this memory is in use its pages are not evicted."""
        self.store = store
        if self._presence is not None:
            self._presence.close()
        self._presence = contexts.presence(store, context.name)
