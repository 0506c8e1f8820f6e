"""A context that lives: what was read, ready to be recalled from, forked, saved and loaded.

What is special here: a memory is a sequence of the cache together with the map from its tokens to files and lines.
Recalling never changes it. Saved, it is a context of a store (`foveal.memory.store`), which holds every page once,
whoever has it; loading it maps those pages. It is loaded only by an engine with the same fingerprint, and what was
damaged or evicted meanwhile is computed again.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch

from foveal import cache
from foveal.api import Engine, with_settings
from foveal.engine import GREEDY, Fingerprint, SamplingParams
from foveal.memory.errors import CorruptMemory
from foveal.memory.names import Root, check_name, find
from foveal.memory.reading import (
    OnProgress,
    ReadTotals,
    Resumed,
    ShouldStop,
    SourceOptions,
    TailEvery,
    changed_files,
    gather,
    go_back,
    run_tokens,
    source_options,
    tail_distance,
)
from foveal.memory.recall import DEFAULT_TOKENS, Recall, RecallStream
from foveal.memory.store import contexts
from foveal.memory.store.files import Presence
from foveal.memory.store.objects import Context
from foveal.memory.store.prefix import load_prefix
from foveal.memory.store.store import Store
from foveal.sources import SourceMap


class Memory:
    """Tokens, pages and tail of a source, with the map to its files and lines.

    Belongs to the engine that made it. Use it in a ``with`` block, or `free` it, to give its pages back.
    """

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
        self._presence: Presence | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def __repr__(self) -> str:
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
    def fingerprint(self) -> Fingerprint:
        return self.engine.fingerprint

    def nbytes(self) -> cache.CacheBytes:
        """Bytes held, by kind."""
        return self.sequence.nbytes()

    # ------------------------------------------------------------------ reading

    @classmethod
    def read(
        cls,
        engine: Engine,
        source: str | Path,
        *,
        name: str = "",
        max_file_bytes: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        use_gitignore: bool = True,
        stdin: BinaryIO | None = None,
        progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
        root: Root = None,
        tail_every: TailEvery = "auto",
    ) -> Self:
        """Read a folder, a file or standard input (``-``) into a new memory.

        With a `root`, what that store has of the source's beginning, whatever it was read as, is not read again.
        `tail_every`: see `TailEvery`.
        `should_stop` is asked between chunks; it and Ctrl-C (once the network runs) end the read early: the memory
        returned then holds what was read, and `complete` is False. Filters are those of `foveal.sources.read_source`.
        Raises `foveal.sources.SourceError` for a source that does not exist, `ReadError` when nothing in it can be
        read, `InvalidName` for a name that is not plain.
        """
        options = source_options(str(source), max_file_bytes, include, exclude, use_gitignore)
        if name:
            check_name(name)
        distance = tail_distance(tail_every, engine.pool.layout, engine.batch.scheduler.chunk)
        sequence = engine.new_sequence(tail_every=distance)
        memory = cls(engine, sequence, SourceMap(), options, ReadTotals(), name=name, tail_every=tail_every)
        try:
            store = find(name or "_", root)[0] if root is not None else None
            memory._resume(stdin, progress, should_stop, store)
        except BaseException:
            memory.free()
            raise
        return memory

    def resume(
        self,
        *,
        stdin: BinaryIO | None = None,
        progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Resumed:
        """Look at the source again and read what is missing, keeping the longest beginning that is unchanged.

        Says what was kept, and which files had changed. Interruption and errors are those of `read`; the memory stays
        usable and holds what was read. Standard input has to be given again from its beginning.
        """
        return self._resume(stdin, progress, should_stop, None)

    def _resume(
        self,
        stdin: BinaryIO | None,
        progress: OnProgress | None,
        should_stop: ShouldStop | None,
        store: Store | None,
    ) -> Resumed:
        found = gather(self.options, self.engine.tokenizer, stdin=stdin, progress=progress)
        if store is not None and not self.length:
            self._begin_with(store, torch.from_numpy(found.ids))
        before = self.length
        past = self.sequence.tokens.numpy()
        kept = go_back(self.sequence, found.ids, self.engine.batch.scheduler.chunk)
        changed = changed_files(self.places, past, found.places, found.ids) if kept < before else ()
        started = time.perf_counter()
        try:
            run_tokens(self.engine, self.sequence, found, progress=progress, should_stop=should_stop)
        except KeyboardInterrupt:
            self.sequence.rollback()  # the chunk in work is dropped; those before it stay
        finally:
            self.places = found.places.copy()
            self.places.truncate(self.length)
            self.totals = ReadTotals(
                files=found.files,
                text_bytes=found.text_bytes,
                tokens=len(found.ids),
                seconds=self.totals.seconds + time.perf_counter() - started,
                skipped=tuple(found.skipped),
                complete=self.length == len(found.ids),
            )
        return Resumed(kept, changed)

    def _begin_with(self, store: Store, tokens: torch.Tensor) -> None:
        """Start from what the store has of `tokens`, cut where reading cuts."""
        chunk, distance = self.engine.batch.scheduler.chunk, self.sequence.tail_every
        found = load_prefix(store, tokens, self.fingerprint, self.engine, chunk=chunk, grain=chunk, tail_every=distance)
        if found is not None:
            self.sequence.free()
            self.sequence = found.sequence

    # ------------------------------------------------------------------ recall

    def recall(
        self,
        cue: str,
        params: SamplingParams = GREEDY,
        *,
        max_tokens: int = DEFAULT_TOKENS,
        healing: bool = True,
        **settings: Any,
    ) -> Recall:
        """What followed `cue` in the source, with the lines it came from. The memory does not change.

        `settings` are fields of `SamplingParams` (``stop="\\n\\n"``, ``temperature=0.7``). `healing` lets the cue end
        in the middle of a token. Raises `ParameterError` for an empty cue or bad settings.
        """
        return self.recall_stream(cue, params, max_tokens=max_tokens, healing=healing, **settings).finish()

    def recall_stream(
        self,
        cue: str,
        params: SamplingParams = GREEDY,
        *,
        max_tokens: int = DEFAULT_TOKENS,
        healing: bool = True,
        **settings: Any,
    ) -> RecallStream:
        """`recall` as pieces of text while they come; the stream's `result` has the citations in the end."""
        params = with_settings(params, max_tokens=max_tokens, **settings)
        return RecallStream(self.engine, self.sequence, self.locate, cue, params, healing=healing)

    def locate(self, token: int) -> tuple[str, int] | None:
        """Path and line (from 1) in which token number `token` begins; None in a file's header line."""
        place = self.places.locate(token)
        return (place.path, place.line) if place.line else None

    # ------------------------------------------------------------------ fork and free

    def fork(self) -> Memory:
        """A second memory over the same pages; it costs a tail."""
        fork = Memory(
            self.engine,
            self.sequence.fork(),
            self.places.copy(),
            self.options,
            self.totals,
            created=self.created,
            tail_every=self.tail_every,
        )
        fork.forked_from = (self.name, self.length) if self.name else self.forked_from
        return fork

    def free(self) -> None:
        """Give the pages back; the memory cannot be used afterwards. Freeing it again does nothing."""
        self.sequence.free()
        if self._presence is not None:
            self._presence.close()

    # ------------------------------------------------------------------ saving

    def save(self, place: str | Path | None = None, *, root: Root = None) -> Path:
        """Save the memory in a store, in place of an older one of its name; returns the store's folder.

        Only the pages that the store has not got are written. `place` is a name (default: the memory's own) or, as a
        `Path` or with a slash, store and name in one. `root` is the store: its folder, an open `Store`, or None for
        `foveal.memory.store_root`. Raises `InvalidName` when there is no plain name, `StoreBusy` when another process
        keeps writing, `StoreError` when the disk refuses; an older memory is then untouched.
        """
        store, name = find(self.name if place is None else place, root)
        self.save_in(store, name)
        return store.folder

    def save_in(self, store: Store, name: str, *, onto: Context | None = None, new: bool = False) -> Context:
        """`save` under `name` in an open store; returns what was saved. For `onto` and `new` see `contexts.save`."""
        parent, at = self.forked_from
        context = contexts.save(
            store,
            name,
            self.sequence,
            self.fingerprint,
            places=self.places,
            facts=self._facts(),
            created=self.created,
            parent=parent if parent != name else "",
            forked_at=at if parent != name else 0,
            tails=self.tail_every != "none",
            onto=onto,
            new=new,
        )
        self._present(store, context)
        return context

    @classmethod
    def load(cls, engine: Engine, place: str | Path, *, root: Root = None) -> Self:
        """The memory saved at `place` (see `save`), with its pages mapped from the disk.

        What was damaged or evicted is computed again from its tokens. Raises `MemoryNotFound`; `FingerprintMismatch`
        naming what differs when another model, tokenizer, number format or rotary setting made it; `CorruptMemory`
        when what cannot be computed again is damaged in both its copies.
        """
        store, name = find(place, root, create=False)
        while True:
            context = store.context(name)
            try:
                return cls._load(engine, store, context)
            except CorruptMemory:
                # Another process may have saved it anew meanwhile: what the older one was made of is gone then.
                if store.context(name) == context:
                    raise

    @classmethod
    def _load(cls, engine: Engine, store: Store, context: Context) -> Self:
        name = context.name
        contexts.check_fingerprint(context, engine.fingerprint)
        facts = _Facts.of(context)
        layout, chunk = engine.pool.layout, engine.batch.scheduler.chunk
        distance = tail_distance(facts.tail_every, layout, chunk)
        places = contexts.read_map(store, context)
        if places.tokens != context.length:
            raise CorruptMemory(name, "it was saved without a source map")
        loaded = contexts.load(store, context, engine.fingerprint, engine, chunk=chunk, tail_every=distance)
        memory = cls(
            engine,
            loaded.sequence,
            places,
            facts.options,
            facts.totals,
            name=name,
            created=context.created,
            tail_every=facts.tail_every,
        )
        memory._present(store, context)
        return memory

    def _present(self, store: Store, context: Context) -> None:
        """While this memory is in use its pages are not evicted."""
        if self._presence is not None:
            self._presence.close()
        self._presence = contexts.presence(store, context.name)

    def _facts(self) -> dict[str, Any]:
        options = asdict(self.options)
        return {
            "model": self.engine.name,
            "cache": str(self.engine.kv),
            "page_bytes": self.engine.pool.layout.page_bytes,
            "tail_every": self.tail_every,
            "source": options | {"include": list(self.options.include), "exclude": list(self.options.exclude)},
            "totals": self.totals.to_dict(),
        }


class _Facts:
    """What `Memory.load` needs of a context, checked."""

    def __init__(self, context: Context) -> None:
        facts = context.facts
        self.tail_every: TailEvery = facts["tail_every"]
        totals = ReadTotals.from_dict(facts["totals"])
        self.totals = replace(totals, complete=totals.complete and context.length == totals.tokens)
        options = SourceOptions(**facts["source"])
        self.options = replace(options, include=tuple(options.include), exclude=tuple(options.exclude))

    @classmethod
    def of(cls, context: Context) -> Self:
        """Raises `CorruptMemory` when the context was not saved by a memory."""
        try:
            return cls(context)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptMemory(context.name, f"it was not saved as a memory ({error})") from error
