"""A sequence out of the store: mapped where it is whole, computed again from its tokens where it is not.

What is special here: nothing is used before it was verified, and nothing that was damaged, evicted or never kept is an
error. The tokens of a context, in two copies and bound together by the names of its pages, are the truth; everything
else is a shortcut. A page that was computed again is used in place of the lost one when it has the very bytes that were
saved; if its last bits differ, all that follows is computed anew as well, so that no state is mixed of two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence as TokenSequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from foveal import cache
from foveal.cache.replay import OnReplay, replay, replay_start
from foveal.config import PAGE_TOKENS
from foveal.engine import Fingerprint
from foveal.memory.errors import CorruptMemory, StoreError
from foveal.memory.store import contexts
from foveal.memory.store.chain import Chain, read_chain
from foveal.memory.store.names import checksum
from foveal.memory.store.objects import Context, Node, StoredTail
from foveal.memory.store.packs import Place
from foveal.memory.store.records import Kind
from foveal.memory.store.rows import Entry
from foveal.memory.store.saving import let_go_of, save_sequence
from foveal.memory.store.store import Store
from foveal.memory.store.tensors import pack_tensors, tensor_bytes, token_bytes, token_tensor, unpack_tensors
from foveal.memory.store.writer import Writer


class Runner(Protocol):
    """What is needed to use a context: pages of its model, and tokens run through it (`foveal.api.Engine`)."""

    @property
    def pool(self) -> cache.PagePool: ...

    @property
    def grain(self) -> int: ...

    def new_sequence(self, *, tail_every: int | None = None) -> cache.Sequence: ...

    def restore_sequence(self, image: cache.SequenceImage, *, tail_every: int | None = None) -> cache.Sequence: ...

    def prefill(self, sequence: cache.Sequence, tokens: TokenSequence[int]) -> int: ...


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
            _put_back(store, context, loaded, fingerprint)
    return loaded


def _put_back(store: Store, context: Context, loaded: Loaded, fingerprint: Fingerprint) -> None:
    """What was computed again, into the store: under the same keys where the bytes are the same."""

    def work(tx: Writer) -> None:
        row = tx.index.context(tx.names.label(context.name))
        if row is None or store.read_context(row) != context:
            return  # somebody saved it anew meanwhile
        mend(tx, context, loaded)
        saved = save_sequence(store, tx, loaded.sequence, fingerprint.digest, tails=context.keeps_tails)
        objects = [number for number in tx.uses(context) if tx.index.kind(number) == Kind.MAP]
        renewed = context.replace(origin=loaded.sequence.origin, **saved.state)
        if renewed != context or tx.changed:
            tx.put_context(renewed, [*saved.objects, *objects])

    store.transact(work)


def mend(tx: Writer, context: Context, loaded: Loaded) -> None:
    """Never look at what was damaged again, and have the lost pages of `context` once more where they came out as they
    were."""
    for entry in loaded.damaged:
        quarantine(tx, entry)
    if loaded.exact:
        _refill(tx, loaded.sequence, context)


def quarantine(tx: Writer, entry: Entry) -> None:
    """Never look at a damaged record again. A tail keeps its number, which others may refer to, but lies nowhere."""
    current = tx.index.find(Kind(entry.kind), entry.key)
    if current is None or current.places != entry.places:
        return
    tx.changed = True
    if entry.kind == Kind.PAGE:
        tx.index.remove([entry.id])
    else:
        tx.index.forget(entry.id)


def _refill(tx: Writer, sequence: cache.Sequence, context: Context) -> None:
    """Pages of the context that the store has lost and the sequence has."""
    if not context.pages:
        return
    head = tx.index.find(Kind.NODE, context.head)
    chain = tx.index.chain(head.id, context.pages) if head is not None else []
    for (node, page), live in zip(chain, sequence.pages, strict=False):
        if page is None:
            tx.put(Kind.PAGE, node.key, tensor_bytes(live.data), position=node.position)


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
    chain = read_chain(store, context, fingerprint)
    return _Loading(store, context, chain, runner, chunk, tail_every, progress).run()


class _Loading:
    """One load. `pages` are the bytes of the full pages, None where they are lost."""

    def __init__(
        self,
        store: Store,
        context: Context,
        chain: Chain,
        runner: Runner,
        chunk: int,
        tail_every: int | None,
        progress: OnReplay | None,
    ) -> None:
        self.store, self.context, self.chain, self.runner = store, context, chain, runner
        self.tokens = token_tensor(chain.tokens)
        known = runner.pool.layout.config.vocab_size
        if len(self.tokens) and int(self.tokens.max()) >= known:
            raise CorruptMemory(f"{context.name} (its tokens)", f"some are not among the {known} that the model knows")
        self.chunk, self.tail_every, self.progress = chunk, tail_every, progress
        self.layout, self.device = runner.pool.layout, runner.pool.device
        self.damaged: list[Entry] = []
        self.replayed = 0
        self._tails: dict[int, StoredTail | None] = {}
        self.pages = read_pages(store, chain, runner.pool, self.damaged)

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
            self._run(sequence, end)
            for number in range(lost, end // PAGE_TOKENS):
                data = sequence.pages[number].data
                same = checksum(tensor_bytes(data)) == self.chain.nodes[number].digest
                if same and self.pages[number] is None:
                    self.pages[number] = data
                elif not same and number == lost:
                    self._run(sequence, self.context.length)
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
        open_page = tensor_bytes(image.open_page) if image.open_page is not None else b""
        self._tails[image.length] = StoredTail(b"", b"", image.length, b"", open_page, pack_tensors(image.tail))

    def _replay_end(self) -> Loaded:
        """All pages are there, but not the tail at the end: run the tokens since the last one, or the window's."""
        length = self.context.length
        sequence = self._start(length)
        try:
            first = sequence.length // PAGE_TOKENS
            self._run(sequence, length)
            if first == len(self.pages):  # no page was made anew
                sequence.keep_tail()
                return self._finish(sequence, exact=True)
            image = sequence.export()
            digests = [checksum(tensor_bytes(page)) for page in image.pages[first:]]
            if digests != [node.digest for node in self.chain.nodes[first:]]:
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
        for position, key in self.context.tails if exact else ():  # else they are of another state
            if position < sequence.length:
                read = partial(_read_later, self.store, self.layout, self.device, key, position, self._place(position))
                sequence.add_tail(cache.LaterTail(position, read))
        if exact:
            for page, key, node in zip(sequence.pages, self.chain.keys, self.chain.nodes, strict=False):
                self.store.known.add(page, key, node.name, self.chain.root)
        return Loaded(sequence, self.damaged, self.replayed, exact)

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
        restore, run = self.runner.restore_sequence, self.runner.prefill
        sequence = replay(restore, run, self.layout, self.tokens, pages, end, progress=self.progress)
        sequence.tail_every, sequence.origin = self.tail_every, self.context.origin
        return sequence

    def _run(self, sequence: cache.Sequence, end: int) -> None:
        tokens = self.tokens[sequence.length : end].tolist()
        self.replayed += len(tokens)
        self.runner.prefill(sequence, tokens)

    def _restore(self, length: int, tail: StoredTail | None) -> cache.Sequence:
        pages = [page for page in self.pages[: length // PAGE_TOKENS] if page is not None]
        origin = self.context.origin if length else ""
        image = make_image(self.layout, self.tokens[:length], pages, tail, origin)
        return self.runner.restore_sequence(image, tail_every=self.tail_every)

    def _tail(self, position: int) -> StoredTail | None:
        """The verified tail of this context at `position`."""
        if position not in self._tails:
            self._tails[position] = self._read_tail(position)
        return self._tails[position]

    def _read_tail(self, position: int) -> StoredTail | None:
        key = dict(self.context.tails).get(position)
        if key is None:
            return None
        tail, entry = read_tail(self.store, key, self.layout)
        if entry is None or not entry.pack:
            return None
        if tail is None or tail.position != position or tail.place != self._place(position):
            self.damaged.append(entry)
            return None
        return tail

    def _place(self, position: int) -> bytes:
        full = position // PAGE_TOKENS
        return self.store.names.tail_place(
            self.chain.key_after(full), token_bytes(self.tokens[full * PAGE_TOKENS : position])
        )


def _read_later(
    store: Store, layout: cache.CacheLayout, device: torch.device, key: bytes, position: int, place: bytes
) -> cache.Tail | None:
    """A tail that a sequence wants to go back to; None when the store has lost it meanwhile."""
    try:
        tail, _ = read_tail(store, key, layout)
    except StoreError:
        return None
    if tail is None or tail.position != position or tail.place != place:
        return None
    return cache.Tail.from_tensors(layout, position, unpack_tensors(tail.tensors), device)


def read_pages(store: Store, chain: Chain, pool: cache.PagePool, damaged: list[Entry]) -> list[Tensor | None]:
    """The verified bytes of all pages, mapped, or shared with what is in memory; None where they are not as saved."""
    places = [Place(page.pack, page.offset, page.span) if page is not None else None for page in chain.pages]
    store.packs.will_need([place for place in places if place is not None])
    pages: list[Tensor | None] = []
    in_memory = store.packs.are_whole()
    for key, node, seen in zip(chain.keys, chain.nodes, chain.pages, strict=True):
        data = _in_memory(store, key, node, pool) if in_memory else None
        if data is None and seen is not None:
            payload, entry = store.fetch(Kind.PAGE, key, seen)
            data = None if payload is None else _page(store, payload, node, pool)
            if data is None and entry is not None:
                damaged.append(entry)
        pages.append(data)
    return pages


def _in_memory(store: Store, key: bytes, node: Node, pool: cache.PagePool) -> Tensor | None:
    """A page that somebody in this process has, if it still is what was saved: its file may have been damaged since."""
    data = store.known.data(key, pool.device)
    if data is not None and data.device.type == "cpu" and checksum(tensor_bytes(data)) != node.digest:
        return None
    return data


def _page(store: Store, payload: memoryview, node: Node, pool: cache.PagePool) -> Tensor | None:
    if len(payload) != pool.layout.page_bytes:
        return None
    if store.cipher is not None and checksum(payload) != node.digest:
        return None
    buffer = bytearray(payload) if payload.readonly else payload
    data = torch.frombuffer(buffer, dtype=torch.uint8) if len(buffer) else torch.empty(0, dtype=torch.uint8)
    return data if pool.device.type == "cpu" else data.to(pool.device)


def read_tail(store: Store, key: bytes, layout: cache.CacheLayout) -> tuple[StoredTail | None, Entry | None]:
    """The tail `key`, verified and of the right shapes, and its entry; None for what is not there, or not whole."""
    payload, entry = store.fetch(Kind.TAIL, key)
    tail = None if payload is None else StoredTail.from_bytes(payload)
    if tail is None or len(tail.open_page) != (layout.page_bytes if tail.position % PAGE_TOKENS else 0):
        return None, entry
    try:
        cache.Tail.from_tensors(layout, tail.position, unpack_tensors(tail.tensors))
    except (cache.CacheError, ValueError):
        return None, entry
    return tail, entry


def make_image(
    layout: cache.CacheLayout, tokens: Tensor, pages: list[Tensor], tail: StoredTail | None, origin: str = ""
) -> cache.SequenceImage:
    """What to restore: `pages` and `tail` (None: the beginning), computed by `origin` (`foveal.cache.Sequence`)."""
    open_page = None
    if tail is not None and tail.position % PAGE_TOKENS:
        open_page = (
            torch.frombuffer(bytearray(tail.open_page), dtype=torch.uint8)
            if len(tail.open_page)
            else torch.empty(0, dtype=torch.uint8)
        )
    named = unpack_tensors(tail.tensors) if tail is not None else cache.Tail.empty(layout).tensors()
    return cache.SequenceImage(len(tokens), tokens, pages, open_page, named, origin)
