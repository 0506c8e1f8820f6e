"""A context that several agents write to and fork from, in one process or in many.

It only grows, and who appends says what they have seen. The store decides: an append that was made onto another head
than the present one is a `Conflict`, and nothing is written. Agents that fork it share all its pages and pay for what
they add themselves.

shared = SharedContext.create(engine, "plan", "What we know so far.\\n")
head = shared.append("Tests are in tests/.\\n", shared.head(), author="scout")
mine = shared.fork()  # a `Memory` of one's own
"""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType
from typing import Self

from foveal.engine import Engine
from foveal.memory.memory import Memory
from foveal.memory.names import Root, check_name, opened
from foveal.memory.options import SourceOptions, TailEvery
from foveal.memory.progress import ReadTotals
from foveal.sources import Document, tokenize_document
from foveal.sources.paths import check_path
from foveal.store import contexts
from foveal.store.errors import Conflict, ReadError, StoreError
from foveal.store.objects import Context
from foveal.store.store import Store

POLL = 0.05
"""Seconds between two looks at the head while waiting."""


class SharedContext:
    """The shared context `name` of a store, as one engine sees it. Safe to use from several threads.

    Everything but `length` and `reused` looks at the store. Raises `MemoryNotFound` when the context was deleted.
    """

    def __init__(self, engine: Engine, store: Store, memory: Memory, seen: Context) -> None:
        self.engine, self.store, self.name = engine, store, seen.name
        self._memory, self._seen = memory, seen
        self._reused = memory.reused
        self._lock = threading.RLock()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    @classmethod
    def create(
        cls,
        engine: Engine,
        name: str,
        text: str,
        *,
        author: str = "",
        root: Root = None,
        tail_every: TailEvery = "auto",
    ) -> Self:
        """A new shared context that begins with `text`. Raises `StoreError` when there is a memory of that name."""
        store = opened(root)
        check_name(name)
        memory = Memory.begin(engine, SourceOptions("-"), name=name, store=store, tail_every=tail_every)
        try:
            _add(memory, text, author)
            seen = memory.save_in(store, name, new=True)
        except BaseException:
            memory.free()
            raise
        return cls(engine, store, memory, seen)

    @classmethod
    def open(cls, engine: Engine, name: str, *, root: Root = None) -> Self:
        """The shared context, or any memory, called `name`. Raises what `Memory.load` does."""
        store = opened(root, create=False)
        seen = store.context(name)
        return cls(engine, store, Memory.load(engine, name, root=store), seen)

    @property
    def length(self) -> int:
        """Tokens at the head, as last seen."""
        return self._seen.length

    @property
    def reused(self) -> int:
        """Tokens that `create` and `append` found in the store and did not run, since this was opened."""
        return self._reused

    def head(self) -> str:
        """A name for all that was appended so far, by anybody. Raises `MemoryNotFound` when it was deleted."""
        return contexts.head_of(self.store, self.store.context(self.name))

    def append(self, text: str, expected_head: str, *, author: str = "") -> str:
        """Add `text` (the model reads it as a file named after `author`) and return the new head.

        Raises `Conflict`, carrying the present head, when that is not `expected_head`: then nothing was added, and of
        several who append at once exactly one has. `ReadError` when `text` is empty.
        """
        with self._lock:
            self._refresh()
            if contexts.head_of(self.store, self._seen) != expected_head:
                raise Conflict(self.name, contexts.head_of(self.store, self._seen))
            longer = self._memory.fork()
            longer.name = self.name
            try:
                _add(longer, text, author)
                seen = longer.save_in(self.store, self.name, onto=self._seen)
            except BaseException:
                longer.free()
                raise
            self._replace(longer, seen)
            self._reused += longer.reused
            return contexts.head_of(self.store, seen)

    def fork(self, at: int | None = None) -> Memory:
        """A memory of one's own over all there is, or over its first `at` tokens. Its pages are the shared ones.

        Raises `StoreError` when there are not so many tokens.
        """
        with self._lock:
            self._refresh()
            return self._memory.fork(at)

    def wait(self, after: str, timeout: float | None = None) -> str:
        """The head, once it is no longer `after`; or `after` itself when `timeout` seconds have passed.

        Whoever waits is told, in this process or another, within about `POLL` seconds. Raises `MemoryNotFound` when the
        context is deleted meanwhile, and `StoreError` when it is closed here or `timeout` is no number.
        """
        if timeout is not None and math.isnan(timeout):
            raise StoreError(f"cannot wait for {timeout} seconds; give a number, or None to wait without end")
        end = None if timeout is None else time.monotonic() + timeout
        while (head := self.head()) == after:
            left = POLL if end is None else min(POLL, end - time.monotonic())
            if left <= 0:
                break
            if self._closed.wait(left):
                self._check_open()
        return head

    def free(self) -> None:
        """Give the pages back, as far as no fork has them. Ends every `wait`; freeing it again does nothing."""
        self._closed.set()
        with self._lock:
            self._memory.free()

    # ------------------------------------------------------------------ inside

    def _refresh(self) -> None:
        """Take in what others have appended."""
        self._check_open()
        now = self.store.context(self.name)
        if not contexts.same_tokens(now, self._seen):
            self._replace(Memory.load(self.engine, self.name, root=self.store), now)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise StoreError(f"the shared context {self.name} was closed here; open it again")

    def _replace(self, memory: Memory, seen: Context) -> None:
        old, self._memory, self._seen = self._memory, memory, seen
        old.free()


def _add(memory: Memory, text: str, author: str) -> None:
    """Run `text` into a memory that nobody else has, and note where its tokens come from."""
    number = len(memory.places.documents) + 1
    path = f"{author or 'shared'}-{number}"
    try:
        check_path(path)  # it stands in the source map like a file's
    except ValueError as error:
        raise ReadError(f"a text cannot be named after the author {author!r}: {error}") from error
    document = tokenize_document(Document(path, text), memory.engine.tokenizer)
    if not text or not len(document.ids):
        raise ReadError("there is nothing to append; give some text")
    memory.extend(document.ids)
    memory.places.append(document)
    memory.totals = ReadTotals(
        files=number,
        text_bytes=memory.totals.text_bytes + len(text.encode("utf-8", "surrogatepass")),
        tokens=memory.length,
        complete=True,
    )
