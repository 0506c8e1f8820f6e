"""A sequence out of the store: mapped where it is whole, computed again from its tokens where it is not.

Nothing is used before it was verified, and nothing that was damaged, evicted or never kept is an error. The tokens of a
context, in two copies and bound together by the names of its pages, are the truth; everything else is a shortcut. A
page that was computed again is used in place of the lost one when it has the very bytes that were saved; if its last
bits differ, all that follows is computed anew as well, so that no state is mixed of two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Sequence as TokenSequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np

from foveal import cache
from foveal.cache.replay import OnReplay, Run, replay, replay_start
from foveal.checkpoint.identity import Fingerprint
from foveal.config import PAGE_TOKENS
from foveal.formats import Array
from foveal.store import contexts
from foveal.store.arrays import array_bytes, pack_arrays, unpack_arrays
from foveal.store.context_view import ContextView
from foveal.store.errors import CorruptMemory, StoreError
from foveal.store.hashes import checksum
from foveal.store.mending import put_back
from foveal.store.objects import Context, StoredTail
from foveal.store.rows import Entry
from foveal.store.saving import let_go_of
from foveal.store.store import Store


class Runner(Protocol):
    """What is needed to use a context: pages of its model, and tokens run through it (`foveal.engine.RunningAgain`)."""

    @property
    def pool(self) -> cache.PagePool: ...

    @property
    def grain(self) -> int: ...

    def new_sequence(self, *, tail_every: int | None = None) -> cache.Sequence: ...

    def restore_sequence(self, image: cache.SequenceImage, *, tail_every: int | None = None) -> cache.Sequence: ...

    def replay(self, sequence: cache.Sequence, tokens: TokenSequence[int]) -> int:
        """Run tokens of which only the window is wanted; returns how many."""
        ...

    def recompute(self, sequence: cache.Sequence, tokens: TokenSequence[int]) -> int:
        """Run tokens for their pages; returns how many."""
        ...


@dataclass
class Loaded:
    """`sequence` as it was saved. `damaged` are the objects that were not as written; `replayed` counts the tokens that
    were run again; `exact` says that the state has the very bits that were saved."""

    sequence: cache.Sequence
    damaged: list[Entry] = field(default_factory=list)
    replayed: int = 0
    exact: bool = True


def load(
    store: Store,
    context: Context,
    fingerprint: Fingerprint,
    runner: Runner,
    *,
    chunk: int,
    tail_every: int | None = None,
) -> Loaded:
    """The sequence of `context`, as it was saved; what was damaged or evicted is computed again and put back.

    Its pages are those of its origin (`Context.origin`), unless all of them had to be computed here. Raises
    `FingerprintMismatch`; `CorruptMemory` when the tokens themselves are lost; `CacheFull`.
    """
    contexts.check_fingerprint(context, fingerprint)
    loaded = load_sequence(store, context, fingerprint.digest, runner, chunk=chunk, tail_every=tail_every)
    if loaded.damaged or loaded.replayed:
        with contextlib.suppress(StoreError):  # a store that cannot be written to is still read
            put_back(store, context, loaded, fingerprint)
    return loaded


def load_sequence(
    store: Store,
    context: Context,
    fingerprint: str,
    runner: Runner,
    *,
    chunk: int,
    tail_every: int | None = None,
    progress: OnReplay | None = None,
) -> Loaded:
    """The sequence of a context. `chunk`: where the runner cuts a prompt (its multiples); see the module. `progress` is
    told of a replay.

    Raises `CorruptMemory` when the tokens are lost, or not of this model, `CacheFull` when there is no room for its
    pages, `StoreError` when memory is limited and the store encrypted.
    """
    let_go_of(store, runner.pool)
    view = ContextView(store, context, fingerprint)
    return _Loading(view, runner, chunk, tail_every, progress).run()


class _Loading:
    """One load. `pages` are the bytes of the full pages, None where they are lost."""

    def __init__(
        self, view: ContextView, runner: Runner, chunk: int, tail_every: int | None, progress: OnReplay | None
    ) -> None:
        self.view, self.context, self.tokens, self.runner = view, view.context, view.tokens, runner
        known = runner.pool.layout.config.vocab_size
        if len(self.tokens) and int(self.tokens.max()) >= known:
            said = f"some are not among the {known} that the model knows"
            raise CorruptMemory(f"{self.context.name} (its tokens)", said)
        self.chunk, self.tail_every, self.progress = chunk, tail_every, progress
        self.layout = runner.pool.layout
        self.replayed = 0
        self._tails: dict[int, StoredTail | None] = {}
        self.pages = view.pages(runner.pool)

    def run(self) -> Loaded:
        length = self.context.length
        while (lost := self._first_lost()) is not None:
            deviating = self._mend(lost)
            if deviating is not None:
                return self._finish(deviating, exact=False)
        tail = self._tail(length) if length else None
        if length and tail is None:
            return self._replay_end()
        return self._finish(self._restore(length, tail), exact=True)

    def _first_lost(self) -> int | None:
        return next((number for number, page in enumerate(self.pages) if page is None), None)

    def _mend(self, lost: int) -> cache.Sequence | None:
        """Compute page `lost` again, and what is lost soon after it. None when it came out as it was saved; else the
        whole context, computed from there on."""
        end = min(self.context.length, -(-(lost + 1) * PAGE_TOKENS // self.chunk) * self.chunk)
        sequence = self._start(lost * PAGE_TOKENS)
        try:
            self._run(self.runner.recompute, sequence, end)
            for number in range(lost, end // PAGE_TOKENS):
                data = sequence.pages[number].data
                same = checksum(array_bytes(data)) == self.view.chain.nodes[number].digest
                if same and self.pages[number] is None:
                    self.pages[number] = data
                elif not same and number == lost:
                    self._run(self.runner.recompute, sequence, self.context.length)
                    return sequence
            self._keep(sequence)
        except BaseException:
            sequence.free()
            raise
        sequence.free()
        return None

    def _keep(self, sequence: cache.Sequence) -> None:
        """Remember where a replay got to: the next one goes on from there."""
        image = sequence.export()
        open_page = array_bytes(image.open_page) if image.open_page is not None else b""
        self._tails[image.length] = StoredTail(b"", b"", image.length, b"", open_page, pack_arrays(image.tail))

    def _replay_end(self) -> Loaded:
        """All pages are there, but not the tail at the end: run the tokens since the last one, or the window's."""
        length = self.context.length
        sequence = self._start(length)
        try:
            first = sequence.length // PAGE_TOKENS
            self._run(self.runner.replay, sequence, length)
            if first == len(self.pages):  # no page was made anew
                sequence.keep_tail()
                return self._finish(sequence, exact=True)
            image = sequence.export()
            digests = [checksum(array_bytes(page)) for page in image.pages[first:]]
            if digests != [node.digest for node in self.view.chain.nodes[first:]]:
                return self._finish(sequence, exact=False)
            pages = [page for page in self.pages if page is not None]
            whole = replace(image, tokens=self.tokens, pages=pages, origin=self.context.origin)
            restored = self.runner.restore_sequence(whole, tail_every=self.tail_every)
        except BaseException:
            sequence.free()
            raise
        sequence.free()
        return self._finish(restored, exact=True)

    def _finish(self, sequence: cache.Sequence, *, exact: bool) -> Loaded:
        for position, _ in self.context.tails if exact else ():  # else they are of another state
            if position < sequence.length:
                read = partial(_tail_or_none, self.view.tail_reader(self.layout, position))
                sequence.add_tail(cache.LaterTail(position, read))
        if exact:
            chain = self.view.chain
            for page, key, node in zip(sequence.pages, chain.keys, chain.nodes, strict=False):
                self.view.store.known.add(page, key, node.name, chain.root)
        return Loaded(sequence, self.view.damaged, self.replayed, exact)

    # ------------------------------------------------------------------ pieces

    def _start(self, position: int) -> cache.Sequence:
        """A sequence at or before `position`, from which on few tokens have to be run: at a tail whose pages are all
        there, or behind the last of those pages, its window run again."""
        lost = self._first_lost()
        reach = len(self.pages) if lost is None else lost
        end = min(position // PAGE_TOKENS, reach) * PAGE_TOKENS
        begin = replay_start(self.layout.config, end) if self.runner.grain == 1 else 0
        for at in sorted({*dict(self.context.tails), *self._tails}, reverse=True):
            if begin < at <= position and at // PAGE_TOKENS <= reach and (tail := self._tail(at)) is not None:
                return self._restore(at, tail)
        return self._replay(begin, end) if begin else self._restore(0, None)

    def _replay(self, begin: int, end: int) -> cache.Sequence:
        """The sequence at `end`, a multiple of 256, by the tokens since `begin`."""
        pages = [page for page in self.pages[: end // PAGE_TOKENS] if page is not None]
        self.replayed += end - begin
        restore, run = self.runner.restore_sequence, self.runner.replay
        sequence = replay(restore, run, self.layout, self.tokens, pages, end, progress=self.progress)
        sequence.tail_every, sequence.origin = self.tail_every, self.context.origin
        return sequence

    def _run(self, run: Run, sequence: cache.Sequence, end: int) -> None:
        tokens = self.tokens[sequence.length : end].tolist()
        self.replayed += len(tokens)
        run(sequence, tokens)

    def _restore(self, length: int, tail: StoredTail | None) -> cache.Sequence:
        pages = [page for page in self.pages[: length // PAGE_TOKENS] if page is not None]
        origin = self.context.origin if length else ""
        image = make_image(self.layout, self.tokens[:length], pages, tail, origin)
        return self.runner.restore_sequence(image, tail_every=self.tail_every)

    def _tail(self, position: int) -> StoredTail | None:
        """The tail at `position`: the stored one, or where a replay got to."""
        if position not in self._tails:
            self._tails[position] = self.view.tail(self.layout, position)
        return self._tails[position]


def _tail_or_none(read: Callable[[], cache.Tail | None]) -> cache.Tail | None:
    """A tail that a sequence wants to go back to; None when the store has lost it, or cannot be read."""
    try:
        return read()
    except StoreError:
        return None


def make_image(
    layout: cache.CacheLayout, tokens: Array, pages: list[Array], tail: StoredTail | None, origin: str = ""
) -> cache.SequenceImage:
    """What to restore: `pages` and `tail` (None: the beginning), computed by `origin` (`foveal.cache.Sequence`)."""
    open_page = None
    if tail is not None and tail.position % PAGE_TOKENS:
        open_page = np.frombuffer(tail.open_page, dtype=np.uint8)
    named = unpack_arrays(tail.tensors) if tail is not None else cache.Tail.empty(layout).tensors()
    return cache.SequenceImage(len(tokens), tokens, pages, open_page, named, origin)
