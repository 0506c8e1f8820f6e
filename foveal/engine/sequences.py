"""Sequences and the one thread that runs them: what an engine is without text.

All that runs tokens or changes a sequence happens on one thread (`foveal.batch.loop`), so an engine may be used from
any number of threads. A sequence that only one caller has may be looked at by that caller while nothing runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from foveal import cache
from foveal.batch import BatchEngine, Job, Kind, Loop, Network, Priority, next_cut
from foveal.batch.room import PoolRoom
from foveal.batch.tokens import Tokens
from foveal.cache.contract import AnyState
from foveal.cache.replay import OnReplay, replay, replay_start
from foveal.config import PAGE_TOKENS, ModelConfig
from foveal.formats import Array

T = TypeVar("T")


class SequenceEngine:
    """A network, the pages of all its sequences (`pool`), and the thread that runs them. It knows token ids only."""

    def __init__(
        self,
        network: Network,
        *,
        kv: cache.CacheFormat,
        batch: BatchEngine | None = None,
        pager: cache.Pager | None = None,
        page_limit: int | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        """Options are those of `Engine`."""
        self.network = network
        self.config: ModelConfig = network.config
        self.kv = kv
        layout, memory = cache.CacheLayout(self.config, kv), getattr(network, "memory", None)
        self.pool = cache.PagePool(layout, limit=page_limit, memory=memory, pager=pager)
        self.batch = batch or BatchEngine(network)
        self.batch.admission.room = PoolRoom(self.pool, scratch)
        self.loop = Loop(self.batch)

    # ------------------------------------------------------------------ the one thread

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is running and end the engine's thread. Whatever runs tokens raises `EngineClosed` afterwards;
        closing again does nothing."""
        self.loop.close()

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, called on the engine's thread between two steps: every sequence is at rest then.

        It holds up all who generate, so it should be short, and it must not wait for other threads. Raises what it
        raises, and `EngineClosed`.
        """
        return self.loop.call(function)

    def _in_room(self, function: Callable[[], T]) -> T:
        """`call`, of something that takes pages: requests make room for it."""
        return self.call(lambda: self.batch.admission.making_room(function))

    # ------------------------------------------------------------------ sequences at rest

    def new_sequence(self, *, tail_every: int | None = None) -> cache.Sequence:
        """An empty sequence in this engine's pool; `free` it when done. `tail_every`: see `foveal.cache.Sequence`."""
        return cache.Sequence(self.pool, dtype=np.float32, tail_every=tail_every)

    def restore_sequence(self, image: cache.SequenceImage, *, tail_every: int | None = None) -> cache.Sequence:
        """The sequence an image was exported from. Raises `foveal.cache.ImageError` when it does not fit."""
        return self._in_room(lambda: cache.Sequence.restore(self.pool, image, dtype=np.float32, tail_every=tail_every))

    def export(self, sequence: cache.Sequence) -> cache.SequenceImage:
        """`Sequence.export`, between two steps."""
        return self.call(sequence.export)

    def truncate(self, sequence: cache.Sequence, length: int) -> Array:
        """`Sequence.truncate`, between two steps. Raises `SequenceBusy` while a job runs on it."""

        def truncate() -> Array:
            self.batch.check_idle(sequence)
            return sequence.truncate(length)

        return self._in_room(truncate)

    def free(self, sequence: cache.Sequence) -> None:
        """`Sequence.free`, between two steps; also after `close`. What a job runs on is freed when that has ended."""
        self.loop.finally_call(partial(self.batch.release, sequence, free_state))

    # ------------------------------------------------------------------ running tokens

    @property
    def grain(self) -> int:
        """See `foveal.batch.BatchEngine.grain`."""
        return self.batch.grain

    def prefill(
        self,
        sequence: cache.Sequence,
        tokens: Tokens,
        *,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        kind: Kind = Kind.READ,
        priority: Priority = Priority.INTERACTIVE,
        tenant: str = "",
    ) -> int:
        """Run `tokens` into `sequence`; returns how many were run.

        `progress(done, total)` is called after every chunk; `should_stop` is asked before every chunk. Whatever
        interrupts it, the sequence holds the pieces that were completed. Callers that read into one sequence take
        turns. Raises `ParameterError` for an unknown id, and `ContextLengthError`, before anything is run, when the
        tokens do not all fit.
        """
        ids = self.batch.check_tokens(tokens)
        self.batch.check_length(sequence.length + len(ids))
        watched = progress is not None or should_stop is not None
        done = 0
        while done < len(ids) and not (should_stop is not None and should_stop()):
            left = len(ids) - done
            count = next_cut(sequence.length, left, self.batch.scheduler.chunk) if watched else left
            piece = ids[done : done + count]
            Job(
                self.loop,
                self.batch.request(piece, state=sequence, kind=kind, priority=priority, tenant=tenant),
            ).result()
            done += count
            if progress is not None:
                progress(done, len(ids))
        return done

    def replay(
        self,
        sequence: cache.Sequence,
        length: int,
        *,
        progress: OnReplay | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> cache.Sequence | None:
        """A sequence over the first `length` tokens of `sequence`, with its pages, whose window is run again
        (`foveal.cache.replay`); None where a kept tail is as near, or the backend would not give the same bits.

        Raises `CacheFull`; `sequence` is as it was in any case.
        """
        if self.grain > 1:
            return None
        kept, tokens, pages = self.call(lambda: (sequence.kept_tails, sequence.tokens, list(sequence.pages)))
        kept = tuple(tail for tail in kept if tail.position <= length)
        if replay_start(self.config, length) <= kept[-1].position:
            return None
        again = replay(
            self.restore_sequence,
            partial(self.prefill, kind=Kind.REPLAY, priority=priority),
            self.pool.layout,
            tokens,
            [page.data for page in pages],
            length,
            progress=progress,
        )
        again.tail_every, again.origin = sequence.tail_every, sequence.origin
        for tail in kept:
            again.add_tail(tail)
        return again

    def fork(self, sequence: cache.Sequence, at: int | None = None) -> cache.Sequence:
        """A second sequence over the tokens of `sequence`, or the first `at`. All its full pages are shared, and no
        more tokens are run than lie behind the nearest kept tail, or than a `replay` needs.

        Raises `foveal.cache.CacheError` when there are not so many tokens, `CacheFull`.
        """
        if at is None:
            return self.loop.briefly(lambda: self.batch.admission.making_room(sequence.fork))
        if (whole := self.loop.briefly(partial(self._fork_whole, sequence, at))) is not None:
            return whole
        if not 0 <= at <= sequence.length:
            raise cache.CacheError(f"cannot fork a sequence of {sequence.length} tokens at {at}")
        if (again := self.replay(sequence, at)) is not None:
            again.keep_tail()
            return again
        fork, pages = self._in_room(lambda: (sequence.fork(), sequence.pages))
        try:
            tokens = self._in_room(lambda: fork.truncate(at)).tolist()
            first = fork.length // PAGE_TOKENS
            self.prefill(fork, tokens, kind=Kind.REPLAY)
            for number, page in enumerate(pages[first : at // PAGE_TOKENS], start=first):
                if np.array_equal(page.data, fork.pages[number].data):
                    fork.put_page(number, page.data)
            fork.keep_tail()
        except BaseException:
            fork.free()
            raise
        return fork

    def _fork_whole(self, sequence: cache.Sequence, at: int) -> cache.Sequence | None:
        """A fork at the end; None when that is not at `at`."""
        return self.batch.admission.making_room(sequence.fork) if at == sequence.length else None


def free_state(state: AnyState) -> None:
    """Give the pages of a request's own sequence back."""
    assert isinstance(state, cache.Sequence)
    state.free()
