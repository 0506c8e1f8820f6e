"""Reading a source into a memory, so that it can stop anywhere and go on.

Tokens decide. Going on from an earlier read tokenises the source again and compares tokens; what is equal is kept, and
from the first difference on (rounded down to a cut of the scheduler) it is read anew. So a read that was interrupted,
resumed, or resumed over changed files ends in the same bits as reading the same tokens at once. Reading runs in the
background: it has the whole machine while nobody else wants it, and else what is left.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from foveal import cache
from foveal.batch import ContextLengthError, Kind, Priority, next_cut
from foveal.engine import Engine
from foveal.formats import Array
from foveal.memory.changes import Changes, IntArray, Target, appended, compare, going_back, rebuilt
from foveal.memory.gathering import TokenizedSource, gather
from foveal.memory.prefixes import StoredPrefixes
from foveal.memory.progress import (
    OnProgress,
    Progress,
    ReadTotals,
    Resumed,
    ShouldStop,
    Speed,
    Watch,
    telling_of_a_window,
)
from foveal.store.errors import ReadError, StoreError

if TYPE_CHECKING:
    from foveal.memory.memory import Memory


def resume(memory: Memory, stdin: BinaryIO | None, watch: Watch) -> Resumed:
    """See `Memory.resume`."""
    source, changes = look(memory, stdin, watch.progress)
    if changes.none and memory.complete:
        return Resumed(memory.length)
    past = memory.sequence.tokens
    if memory.appending:
        target = appended(memory.places, past, changes, memory.engine.tokenizer)
    else:
        target = rebuilt(memory.places, past, changes)
    kept = Taking(memory, target, source, Kind.READ, watch).run()
    return Resumed(kept, (*changes.changed, *changes.removed))


def look(memory: Memory, stdin: BinaryIO | None, progress: OnProgress | None) -> tuple[TokenizedSource, Changes]:
    """The memory's source as it is now, and what is different in it."""
    if memory.chat is not None:
        raise ReadError(
            f"{memory.name or 'this'} is a conversation, which is not read from files; `foveal chat` goes on"
        )
    tokenizer = memory.engine.tokenizer
    source = gather(memory.options, tokenizer, stdin=stdin, progress=progress)
    memory.encodings, memory.notes = tuple(source.encodings), source.notes
    return source, compare(memory.places, memory.sequence.tokens, source, tokenizer, memory.unread)


class Taking:
    """Making `memory` hold `target`, tokens of `source`, or as much of it as there is time and room for."""

    def __init__(self, memory: Memory, target: Target, source: TokenizedSource, kind: Kind, watch: Watch) -> None:
        """Raises `ContextLengthError`."""
        _check_length(memory.engine, target)
        self._memory, self._target, self._source, self._kind, self._watch = memory, target, source, kind, watch
        self._before = memory.totals

    def run(self) -> int:
        """Returns how many tokens were kept."""
        memory, ids, progress = self._memory, self._target.ids, self._watch.progress
        kept = memory.length
        if not memory.appending:
            memory.sequence, kept = go_back(memory.engine, memory.sequence, ids, progress=progress)
        self._begin()
        self._saved = self._started
        try:
            with contextlib.suppress(KeyboardInterrupt):  # what was run until then stays
                take_stored(memory, ids, priority=Priority.BACKGROUND, progress=progress)
                self._begin()
                self._run()
        except (cache.CacheFull, cache.LimitTooSmall) as error:
            if memory.length == self._began:
                raise
            memory.problem = str(error)
        finally:
            self._note()
            memory.appending = memory.appending and not memory.complete
        return kept

    def _begin(self) -> None:
        self._began, self._started = self._memory.length, time.perf_counter()

    def _run(self) -> None:
        memory, progress = self._memory, self._watch.progress
        run_tokens(
            memory.engine,
            memory.sequence,
            self._target,
            kind=self._kind,
            progress=progress,
            should_stop=self._stop,
        )

    def _stop(self) -> bool:
        """Asked between chunks: save when it is time to, and say whether to stop."""
        memory, every = self._memory, self._watch.save_every
        due = every is not None and time.perf_counter() - self._saved >= every
        if due and memory.store is not None and memory.length > self._began:
            self._note()
            with contextlib.suppress(StoreError):  # what hinders now may be over next time; the last save tells
                memory.save_in(memory.store, memory.name)
            self._saved = time.perf_counter()
        return self._watch.should_stop is not None and self._watch.should_stop()

    def _note(self) -> None:
        """Say what is there of the target."""
        memory, target, source = self._memory, self._target, self._source
        memory.places = target.places.copy()
        memory.places.truncate(memory.length)
        memory.totals = ReadTotals(
            files=len(source.documents),
            text_bytes=source.text_bytes,
            tokens=len(target.ids),
            seconds=self._before.seconds + time.perf_counter() - self._started,
            skipped=tuple(source.skipped),
            complete=memory.length == len(target.ids),
            run=self._before.run + memory.length - self._began,
        )
        memory.unread = tuple(path for path, first, _ in target.places.documents if first >= memory.length)


def _check_length(engine: Engine, target: Target) -> None:
    """Raises `ContextLengthError` for more than the model's context, before anything is run or dropped."""
    length = len(target.ids)
    if length > (most := engine.batch.context_length):
        raise ContextLengthError(
            f"{length:,} tokens are more than the model's context of {most:,}; leave files out with --exclude"
        )


def take_stored(
    memory: Memory,
    tokens: Array,
    *,
    priority: Priority = Priority.INTERACTIVE,
    progress: OnProgress | None = None,
) -> None:
    """Take what the store has of `tokens`, of which the memory holds the beginning, if that is more."""
    if memory.store is None or memory.length == len(tokens):
        return
    found = StoredPrefixes(memory.store).start(
        memory.engine,
        tokens,
        after=memory.sequence,
        priority=priority,
        tail_every=memory.sequence.tail_every,
        progress=telling_of_a_window(progress),
    )
    if found is not None:
        memory.engine.free(memory.sequence)
        memory.sequence = found.sequence
        memory.reused += found.reused


def extend(memory: Memory, ids: IntArray) -> None:
    """See `Memory.extend`."""
    ids = memory.engine.batch.check_tokens(ids).astype(np.int32)  # before the store is asked: it would wrap
    end = memory.length + len(ids)
    memory.engine.batch.check_length(end)
    take_stored(memory, np.concatenate([memory.sequence.tokens, ids]))
    memory.engine.prefill(memory.sequence, ids[memory.length - end :] if memory.length < end else [])


def go_back(
    engine: Engine, sequence: cache.Sequence, ids: IntArray, *, progress: OnProgress | None = None
) -> tuple[cache.Sequence, int]:
    """`sequence`, or one in its place, cut to what it shares with `ids`, at a cut of the engine; and how many tokens
    they share.

    It may end up shorter than that, at an earlier tail: reading `ids` on from its length replays the rest.
    """
    common, cut = going_back(sequence.tokens, ids, engine.grain)
    if cut < sequence.length:
        if (
            again := engine.replay(sequence, cut, progress=telling_of_a_window(progress), priority=Priority.BACKGROUND)
        ) is not None:
            engine.free(sequence)
            return again, common
        engine.truncate(sequence, cut)
    return sequence, common


def run_tokens(
    engine: Engine,
    sequence: cache.Sequence,
    target: Target,
    *,
    kind: Kind = Kind.READ,
    progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> None:
    """Run `target.ids`, in the background, into `sequence` from its length on, until the end, or `should_stop` says so
    between chunks."""
    total, chunk = len(target.ids), engine.batch.scheduler.chunk
    speed = Speed()
    documents = target.places.documents
    ends = [end for _, _, end in documents]
    while (start := sequence.length) < total and not (should_stop is not None and should_stop()):
        if engine.grain > 1 and start and total - start < chunk - start % chunk:
            engine.call(sequence.keep_tail)  # what is read later goes on from a cut, and so from here
        count = next_cut(start, total - start, chunk)
        engine.prefill(sequence, target.ids[start : start + count], kind=kind, priority=Priority.BACKGROUND)
        if progress is not None:
            rate = speed.after(sequence.length - start)
            here = documents[min(int(np.searchsorted(ends, sequence.length)), len(documents) - 1)][0]
            left = (total - sequence.length) / rate
            progress(Progress(sequence.length, total, True, rate, left, here))
