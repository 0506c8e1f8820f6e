"""A context that lives: what was read, ready to be recalled from, forked, saved and loaded.

A memory is a sequence of the cache together with the map from its tokens to files and lines. Recalling never changes
it. Saved, it is a context of a store (`foveal.store`), which holds every page once, whoever has it; loading it maps
those pages. It is loaded only by an engine with the same fingerprint, and what was damaged or evicted meanwhile is
computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO, Self

from foveal.batch import GREEDY, SamplingParams
from foveal.engine import Engine, with_settings
from foveal.memory import loading, reading, saving, syncing
from foveal.memory.asking.answering import ANSWER_TOKENS, DEFAULT_ZOOM, PLACE_TOKENS, Answer, AnswerStream, Asking
from foveal.memory.asking.chat_model import ChatModel, opened_chat
from foveal.memory.base import MemoryBase, in_turn
from foveal.memory.changes import IntArray
from foveal.memory.citations import Place
from foveal.memory.names import Root, check_name, find, store_at
from foveal.memory.options import SourceOptions, TailEvery, source_options, tail_distance
from foveal.memory.prefixes import StoredPrefixes
from foveal.memory.progress import OnProgress, ReadTotals, Resumed, ShouldStop, Watch
from foveal.memory.recall import DEFAULT_TOKENS, Recall, RecallStream
from foveal.memory.syncing import Mode, SyncPlan
from foveal.memory.versions import Versions
from foveal.sources import SourceMap
from foveal.store import contexts
from foveal.store.errors import NoSuchToken
from foveal.store.objects import Context
from foveal.store.store import Store


class Memory(MemoryBase):
    """Tokens, pages and tail of a source, with the map to its files and lines.

    Belongs to the engine that made it. Use it in a ``with`` block, or `free` it, to give its pages back. Safe to use
    from several threads: what reads, changes or saves it takes turns. Recalls take a turn only to begin; then they run
    beside everything else, on the memory as it was.
    """

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
        memory = cls.begin(engine, options, name=name, store=store_at(root), tail_every=tail_every)
        try:
            memory.resume(stdin=stdin, progress=progress, should_stop=should_stop, save_every=save_every)
        except BaseException:
            memory.free()
            raise
        return memory

    @classmethod
    def begin(
        cls,
        engine: Engine,
        options: SourceOptions,
        *,
        name: str = "",
        store: Store | None = None,
        tail_every: TailEvery = "auto",
    ) -> Self:
        """A memory that has read nothing yet; `resume` reads. What `store` has of the source is not read again."""
        distance = tail_distance(tail_every, engine.pool.layout, engine.batch.scheduler.chunk)
        sequence = engine.new_sequence(tail_every=distance)
        memory = cls(engine, sequence, SourceMap(), options, ReadTotals(), name=name, tail_every=tail_every)
        memory.store = store
        return memory

    @in_turn
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
        return reading.resume(self, stdin, Watch(progress, should_stop, save_every))

    # ------------------------------------------------------------------ bringing up to date

    @in_turn
    def plan_sync(self, *, progress: OnProgress | None = None) -> SyncPlan:
        """Compare the memory with its source, and say what each way to bring it up to date costs. Changes nothing.

        The plan holds the source as it was found; `sync` takes it in. Raises `ReadError` for standard input, which
        cannot be looked at again, or when nothing is left to read; `foveal.sources.SourceError` when the source is not
        where it was.
        """
        return syncing.plan_sync(self, progress)

    @in_turn
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
        return syncing.sync(self, mode, plan, Watch(progress, should_stop, save_every))

    @in_turn
    def extend(self, ids: IntArray) -> None:
        """Run `ids`, int32 [n], behind all that is there, from what the store has of them. Raises `CacheFull`,
        `ContextLengthError`, and `ParameterError` for what is no token id."""
        reading.extend(self, ids)

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

    @in_turn
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
        base = self.engine.fork(self.sequence)
        versions = self._present_versions()
        try:
            return RecallStream(
                self.engine,
                base,
                lambda token: versions.place(token, base.token_range),
                cue,
                params,
                healing=healing,
                prefixes=prefixes,
            )
        except BaseException:
            base.free()
            raise

    # ------------------------------------------------------------------ questions

    def ask(
        self,
        question: str,
        *,
        zoom: int = DEFAULT_ZOOM,
        with_: ChatModel | str | Path | None = None,
        max_tokens: int = ANSWER_TOKENS,
        place_tokens: int = PLACE_TOKENS,
    ) -> Answer:
        """The answer to a question, worded by a chat model from the `zoom` best places, with the lines it rests on.

        `with_`: the model that words it, open or by name (then it is opened for this question alone); by default the
        memory's own, or smollm2 for a memory of a model that cannot chat. With zoom 0 no place is shown: a model that
        looks up entries answers out of its own memory. `place_tokens`: of all places together. The memory does not
        change. Raises `NoChatModel`, `ParameterError`, and what opening and running the model does.
        """
        with opened_chat(self.engine, with_) as chat:
            return self.ask_stream(
                question, zoom=zoom, with_=chat, max_tokens=max_tokens, place_tokens=place_tokens
            ).finish()

    @in_turn
    def ask_stream(
        self,
        question: str,
        *,
        with_: ChatModel,
        zoom: int = DEFAULT_ZOOM,
        max_tokens: int = ANSWER_TOKENS,
        place_tokens: int = PLACE_TOKENS,
    ) -> AnswerStream:
        """`ask` as pieces of text while they come; its places are found when this returns."""
        asking = Asking(self, question, with_, zoom=zoom, max_tokens=max_tokens, place_tokens=place_tokens)
        asking.find()
        return AnswerStream(asking)

    @in_turn
    def place(self, token: int) -> Place | None:
        """Path and line (from 1) in which token number `token` begins; None in a file's header line.

        A line of an earlier version of a file is given as the present version numbers it; if it is not there any more,
        as the earlier one did, and the place says that it is outdated.
        """
        return self._present_versions().place(token, self.sequence.token_range)

    def _present_versions(self) -> Versions:
        if self._versions is None or not self._versions.fits(self.places):
            self._versions = Versions(self.places, self.engine.tokenizer)
        return self._versions

    def locate(self, token: int) -> tuple[str, int] | None:
        """Path and line of `place`."""
        place = self.place(token)
        return (place.path, place.line) if place is not None else None

    # ------------------------------------------------------------------ forks

    @in_turn
    def fork(self, at: int | None = None) -> Memory:
        """A second memory over the same tokens, or the first `at` of them. It shares all full pages and costs a tail.

        Raises `StoreError` when there are not so many tokens, `foveal.cache.CacheFull`.
        """
        length = self.length if at is None else at
        if at is not None and not (isinstance(at, Integral) and at is not True and 0 < at <= self.length):
            raise NoSuchToken(f"cannot fork {self.name or 'the memory'} at token {at}: it has {self.length}")
        places = self.places.copy()
        places.truncate(length)
        fork = Memory(
            self.engine,
            self.engine.fork(self.sequence, length),
            places,
            self.options,
            self.totals if length == self.length else replace(self.totals, complete=False),
            created=self.created,
            tail_every=self.tail_every,
        )
        fork.unread = (*self.places.paths_from(length), *self.unread)
        fork.appending, fork.store = self.appending, self.store
        fork.chat = self.chat if self.chat is not None and self.chat <= length else None
        fork.forked_from = (self.name, length) if self.name else self.forked_from
        return fork

    # ------------------------------------------------------------------ saving

    def save(self, location: str | Path | None = None, *, root: Root = None) -> Path:
        """Save the memory in a store, in place of an older one of its name; returns the store's folder.

        Only the pages that the store has not got are written. `location` is a name (default: the memory's own) or, as a
        `Path` or with a slash, store and name in one. `root` is the store: its folder, an open `Store`, or None for the
        one that the memory lies in, and for a memory that lies in none `foveal.memory.store_root`. Raises
        `InvalidName` when there is no plain name, `StoreBusy` when another process keeps writing, `StoreError` when the
        disk refuses; an older memory is then untouched.
        """
        location = self.name if location is None else location
        named = isinstance(location, str) and "/" not in location
        store, name = find(location, self.store if named and root is None else root)
        self.save_in(store, name)
        return store.folder

    @in_turn
    def save_in(self, store: Store, name: str, *, onto: Context | None = None, new: bool = False) -> Context:
        """`save` under `name` in an open store; returns what was saved. For `onto` and `new` see
        `foveal.store.saving.save`."""
        context = saving.save(self, store, name, onto=onto, new=new)
        self._lies_in(store, context)
        return context

    @classmethod
    def load(cls, engine: Engine, location: str | Path, *, root: Root = None) -> Self:
        """The memory saved at `location` (see `save`), with its pages mapped from the disk.

        What was damaged or evicted is computed again from its tokens. Raises `MemoryNotFound`; `FingerprintMismatch`
        naming what differs when another model, tokenizer, number format or rotary setting made it; `CorruptMemory`
        when what cannot be computed again is damaged in both its copies.
        """
        store, name = find(location, root, create=False)
        return contexts.on_current(store, name, lambda context: cls._load(engine, store, context))

    @classmethod
    def _load(cls, engine: Engine, store: Store, context: Context) -> Self:
        memory = loading.load(cls, engine, store, context)
        memory._lies_in(store, context)
        return memory
