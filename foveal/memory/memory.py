"""A context that lives: what was read, ready to be recalled from, forked, saved and loaded.

What is special here: a memory is a sequence of the cache together with the map from its tokens to files and lines.
Recalling never changes it. Saved, it is a context of a store (`foveal.memory.store`), which holds every page once,
whoever has it; loading it maps those pages. It is loaded only by an engine with the same fingerprint, and what was
damaged or evicted meanwhile is computed again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import torch

from foveal import cache
from foveal.api import Engine, with_settings
from foveal.engine import GREEDY, ContextLengthError, Fingerprint, SamplingParams
from foveal.memory.citations import Place
from foveal.memory.errors import CorruptMemory, ReadError, StoreError
from foveal.memory.names import Root, check_name, find, store_at
from foveal.memory.prefixes import StoredPrefixes
from foveal.memory.reading import (
    IntArray,
    OnProgress,
    Reading,
    ReadTotals,
    Resumed,
    ShouldStop,
    SourceOptions,
    TailEvery,
    Target,
    TokenizedSource,
    gather,
    go_back,
    run_tokens,
    source_options,
    tail_distance,
    telling_of_a_window,
)
from foveal.memory.recall import DEFAULT_TOKENS, Recall, RecallStream
from foveal.memory.store import contexts, loading, saving
from foveal.memory.store.files import Presence
from foveal.memory.store.objects import Context
from foveal.memory.store.store import Store
from foveal.memory.syncing import Changes, Mode, Present, SyncPlan, appended, compare, make_plan, rebuilt
from foveal.memory.versions import Versions
from foveal.sources import SourceMap

ABOUT_BYTES = 1536
"""About what a context's record takes besides the facts."""


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
        self.problem = ""
        """Why reading ended early, when there was no more room: what was read until then is there."""
        self.unread: tuple[str, ...] = ()
        """Files of the source that are still to be read, in order."""
        self.appending = False
        """Whether a sync that appends was begun and is not finished."""
        self.store: Store | None = None
        """Where it is saved, or was loaded from: what that has is not read again."""
        self.reused = 0
        """Tokens that were found in the store and not run, since this memory was made or loaded."""
        self.encodings: tuple[Reading, ...] = ()
        """Files that were not plain UTF-8 when the source was last looked at, since this memory was made or loaded."""
        self.notes: tuple[str, ...] = ()
        """What to tell of how its files were found then."""
        self._versions: Versions | None = None
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
    def origin(self) -> str:
        """ "" when its pages were computed on this machine; else the hash of the file that they were imported from."""
        return self.sequence.origin

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
        source: str | Path | Sequence[str | Path],
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
        save_every: float | None = None,
    ) -> Self:
        """Read a folder, a file, a pipe or standard input (``-``), or several of them, into a new memory.

        What the store at `root` (default: see `foveal.memory.store_root`) has of the source's beginning, whatever it
        was saved as, is not read again; `reused` says how many tokens that were.
        `tail_every`: see `TailEvery`. `save_every`: seconds after which to save what was read so far, as `name` in that
        store, again and again (default: nothing is saved before `save`). It needs a name and a store.
        `should_stop` is asked between chunks; it and Ctrl-C (once the network runs) end the read early: the memory
        returned then holds what was read, and `complete` is False. Filters are those of `foveal.sources.read_source`.
        Raises `foveal.sources.SourceError` for a source that does not exist, `ReadError` when nothing in it can be
        read, `ContextLengthError` when it has more tokens than the model's context, `InvalidName` for a name that is
        not plain.
        """
        options = source_options(source, max_file_bytes, include, exclude, use_gitignore)
        if name or save_every is not None:
            check_name(name)
        distance = tail_distance(tail_every, engine.pool.layout, engine.batch.scheduler.chunk)
        sequence = engine.new_sequence(tail_every=distance)
        memory = cls(engine, sequence, SourceMap(), options, ReadTotals(), name=name, tail_every=tail_every)
        try:
            memory.store = store_at(root)
            memory.resume(stdin=stdin, progress=progress, should_stop=should_stop, save_every=save_every)
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
        save_every: float | None = None,
    ) -> Resumed:
        """Look at the source again and read what is missing, keeping the longest beginning that is unchanged.

        Says what was kept, and which files had changed. Interruption, `save_every` and errors are those of `read`; the
        memory stays usable and holds what was read. Standard input has to be given again from its beginning.
        """
        source = self._gather(stdin, progress)
        changes = self._compare(source)
        if changes.none and self.complete:
            return Resumed(self.length)
        if self.appending:
            past = self.sequence.tokens.numpy()
            target = appended(self.places, past, changes, self.engine.tokenizer)
        else:
            target = rebuilt(self.places, self.sequence.tokens.numpy(), changes)
        kept = self._take(target, source, progress, should_stop, save_every)
        return Resumed(kept, (*changes.changed, *changes.removed))

    # ------------------------------------------------------------------ bringing up to date

    def plan_sync(self, *, progress: OnProgress | None = None) -> SyncPlan:
        """Compare the memory with its source, and say what each way to bring it up to date costs. Changes nothing.

        The plan holds the source as it was found; `sync` takes it in. Raises `ReadError` for standard input, which
        cannot be looked at again, or when nothing is left to read; `foveal.sources.SourceError` when the source is not
        where it was.
        """
        if self.options.once_only:
            raise ReadError(
                f"memory {self.name or 'without a name'} was not read from files, so nothing can be compared with it; "
                "read it anew, or append to it"
            )
        source = self._gather(None, progress)
        changes = self._compare(source)
        distance = self.sequence.tail_every
        present = Present(
            past=self.sequence.tokens.numpy(),
            places=self.places,
            layout=self.engine.pool.layout,
            chunk=self.engine.batch.scheduler.chunk,
            grain=self.engine.grain,
            tail_every=distance,
            keeps_tails=self.tail_every != "none",
            tails=tuple(tail.position for tail in self.sequence.kept_tails),
            speed=self.totals.tokens_per_second or self._measure_speed(source),
            about=len(json.dumps(self._facts())) + ABOUT_BYTES,
        )
        going_on: Mode | None = None if self.complete else "append" if self.appending else "rebuild"
        return make_plan(present, source, changes, self.engine.tokenizer, going_on=going_on)

    def sync(
        self,
        mode: Mode | None = None,
        *,
        plan: SyncPlan | None = None,
        progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
        save_every: float | None = None,
    ) -> SyncPlan:
        """Bring the memory up to date with its source, by appending or rebuilding; returns what was done.

        `mode` None does what the plan recommends: append, unless rebuilding reads at most twice as many tokens or more
        than a quarter of the memory would be of earlier versions. `plan`: one that was made of this memory before
        (`plan_sync`). When nothing has changed nothing is done, except that "rebuild" drops earlier versions.
        Interruption and `save_every` (into the store it came from) are those of `read`: the next `sync` goes on, the
        same way. Errors are those of `plan_sync`, and `ReadError` when the memory is another one than the plan was made
        of. Save it afterwards.
        """
        plan = plan or self.plan_sync(progress=progress)
        if plan.length != self.length:
            raise ReadError(
                f"the plan was made when the memory had {plan.length} tokens; it has {self.length}: plan anew"
            )
        chosen = mode or plan.recommended
        if not plan.is_needed(chosen):
            return plan
        self._check_length(plan.targets[chosen])
        self.appending = chosen == "append"
        self._take(plan.targets[chosen], plan.source, progress, should_stop, save_every)
        return plan

    def _check_length(self, target: Target) -> None:
        """Raises `ContextLengthError` for more than the model's context, before anything is run or dropped."""
        length = len(target.ids)
        if length > (most := self.engine.batch.context_length):
            raise ContextLengthError(
                f"{length:,} tokens are more than the model's context of {most:,}; leave files out with --exclude"
            )

    def _gather(self, stdin: BinaryIO | None, progress: OnProgress | None) -> TokenizedSource:
        source = gather(self.options, self.engine.tokenizer, stdin=stdin, progress=progress)
        self.encodings, self.notes = tuple(source.encodings), source.notes
        return source

    def _compare(self, source: TokenizedSource) -> Changes:
        return compare(self.places, self.sequence.tokens.numpy(), source, self.engine.tokenizer, self.unread)

    def _measure_speed(self, source: TokenizedSource) -> float:
        """Tokens a second, measured on a chunk of the source that is read and dropped."""
        chunk = self.engine.batch.scheduler.chunk
        ids = np.concatenate([document.ids for document in source.documents])[:chunk].tolist()
        with self.fork(min(self.length, self.engine.batch.context_length - len(ids))) as trial:
            started = time.perf_counter()
            self.engine.prefill(trial.sequence, ids)
            return len(ids) / max(time.perf_counter() - started, 1e-9)

    def _take(
        self,
        target: Target,
        source: TokenizedSource,
        progress: OnProgress | None,
        should_stop: ShouldStop | None,
        save_every: float | None = None,
    ) -> int:
        """Make the memory hold `target`, or as much as there is time for; returns the tokens that were kept."""
        self._check_length(target)
        kept = self.length
        if not self.appending:
            self.sequence, kept = go_back(self.engine, self.sequence, target.ids, progress=progress)
        before, began, started = self.totals, self.length, time.perf_counter()

        saved = started

        def stop() -> bool:
            nonlocal saved
            due = save_every is not None and time.perf_counter() - saved >= save_every
            if due and self.store is not None and self.length > began:
                self._note(target, source, before, began, started)
                with contextlib.suppress(StoreError):  # what hinders now may be over next time; the last save tells
                    self.save_in(self.store, self.name)
                saved = time.perf_counter()
            return should_stop is not None and should_stop()

        try:
            self._start(torch.from_numpy(target.ids), progress)
            began, started = self.length, time.perf_counter()
            run_tokens(self.engine, self.sequence, target, progress=progress, should_stop=stop)
        except KeyboardInterrupt:
            self.sequence.rollback()  # the chunk in work is dropped; those before it stay
        except (cache.CacheFull, cache.LimitTooSmall) as error:
            if self.length == began:
                raise
            self.problem = str(error)
        finally:
            self._note(target, source, before, began, started)
            self.appending = self.appending and not self.complete
        return kept

    def _note(self, target: Target, source: TokenizedSource, before: ReadTotals, began: int, started: float) -> None:
        """Say what is there of `target`, which was begun at `began` tokens and time `started`."""
        self.places = target.places.copy()
        self.places.truncate(self.length)
        self.totals = ReadTotals(
            files=len(source.documents),
            text_bytes=source.text_bytes,
            tokens=len(target.ids),
            seconds=before.seconds + time.perf_counter() - started,
            skipped=tuple(source.skipped),
            complete=self.length == len(target.ids),
            run=before.run + self.length - began,
        )
        self.unread = tuple(path for path, first, _ in target.places.documents if first >= self.length)

    def extend(self, ids: IntArray) -> None:
        """Run `ids`, int32 [n], behind all that is there, from what the store has of them. Raises `CacheFull`,
        `ContextLengthError`."""
        end = self.length + len(ids)
        self.engine.batch.check_length(end)
        self._start(torch.cat([self.sequence.tokens, torch.from_numpy(ids)]))
        self.engine.prefill(self.sequence, ids[self.length - end :].tolist() if self.length < end else [])

    def _start(self, tokens: torch.Tensor, progress: OnProgress | None = None) -> None:
        """Take what the store has of `tokens`, of which the memory holds the beginning, if that is more."""
        if self.store is None or self.length == len(tokens):
            return
        prefixes, distance = StoredPrefixes(self.store), self.sequence.tail_every
        told = telling_of_a_window(progress)
        found = prefixes.start(self.engine, tokens, after=self.sequence, tail_every=distance, progress=told)
        if found is not None:
            self.sequence.free()
            self.sequence = found.sequence
            self.reused += found.reused

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
        prefixes = StoredPrefixes(self.store) if self.store is not None else None
        return RecallStream(self.engine, self.sequence, self.place, cue, params, healing=healing, prefixes=prefixes)

    def place(self, token: int) -> Place | None:
        """Path and line (from 1) in which token number `token` begins; None in a file's header line.

        A line of an earlier version of a file is given as the present version numbers it; if it is not there any more,
        as the earlier one did, and the place says that it is outdated.
        """
        if self._versions is None or not self._versions.fits(self.places):
            self._versions = Versions(self.places, self._tokens, self.engine.tokenizer)
        return self._versions.place(token)

    def _tokens(self, first: int, after: int) -> torch.Tensor:
        return self.sequence.token_range(first, after)

    def locate(self, token: int) -> tuple[str, int] | None:
        """Path and line of `place`."""
        place = self.place(token)
        return (place.path, place.line) if place is not None else None

    # ------------------------------------------------------------------ fork and free

    def fork(self, at: int | None = None) -> Memory:
        """A second memory over the same tokens, or the first `at` of them. It shares all full pages and costs a tail.

        Raises `StoreError` when there are not so many tokens, `foveal.cache.CacheFull`.
        """
        length = self.length if at is None else at
        if at is not None and not 0 < at <= self.length:
            raise StoreError(f"cannot fork {self.name or 'the memory'} at token {at}: it has {self.length}")
        places = self.places.copy()
        places.truncate(length)
        fork = Memory(
            self.engine,
            self.sequence.fork() if length == self.length else self.engine.fork(self.sequence, length),
            places,
            self.options,
            self.totals if length == self.length else replace(self.totals, complete=False),
            created=self.created,
            tail_every=self.tail_every,
        )
        fork.unread = (*self.places.paths_from(length), *self.unread)
        fork.appending, fork.store = self.appending, self.store
        fork.forked_from = (self.name, length) if self.name else self.forked_from
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
        """`save` under `name` in an open store; returns what was saved. For `onto` and `new` see `saving.save`."""
        parent, at = self.forked_from
        context = saving.save(
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
        return contexts.on_current(store, name, lambda context: cls._load(engine, store, context))

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
        loaded = loading.load(store, context, engine.fingerprint, engine, chunk=chunk, tail_every=distance)
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
        memory.unread, memory.appending = facts.unread, facts.appending
        memory._present(store, context)
        return memory

    def _present(self, store: Store, context: Context) -> None:
        """While this memory is in use its pages are not evicted."""
        self.store = store
        if self._presence is not None:
            self._presence.close()
        self._presence = contexts.presence(store, context.name)

    def _facts(self) -> dict[str, Any]:
        return {
            "model": self.engine.name,
            "cache": str(self.engine.kv),
            "page_bytes": self.engine.pool.layout.page_bytes,
            "tail_every": self.tail_every,
            "source": self.options.to_dict(),
            "totals": self.totals.to_dict(),
            **({} if self.complete else {"unread": list(self.unread), "appending": self.appending}),
        }


class _Facts:
    """What `Memory.load` needs of a context, checked."""

    def __init__(self, context: Context) -> None:
        facts = context.facts
        self.tail_every: TailEvery = facts["tail_every"]
        totals = ReadTotals.from_dict(facts["totals"])
        self.totals = replace(totals, complete=totals.complete and context.length == totals.tokens)
        self.unread: tuple[str, ...] = tuple(facts.get("unread", ()))
        self.appending: bool = bool(facts.get("appending", False))
        self.options = SourceOptions.from_dict(facts["source"])

    @classmethod
    def of(cls, context: Context) -> Self:
        """Raises `CorruptMemory` when the context was not saved by a memory."""
        try:
            return cls(context)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptMemory(context.name, f"it was not saved as a memory ({error})") from error
