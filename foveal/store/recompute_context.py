"""One context computed from its first token on, every page and tail compared with what is stored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from foveal import cache
from foveal.config import PAGE_TOKENS
from foveal.store.arrays import array_bytes, unpack_arrays
from foveal.store.chain import Chain
from foveal.store.context_view import ContextView
from foveal.store.hashes import checksum
from foveal.store.mending import quarantine
from foveal.store.objects import Context, StoredTail
from foveal.store.own_files import LIVE
from foveal.store.recomputation import Recomputation, said_of_pages
from foveal.store.records import Kind
from foveal.store.report import Problem
from foveal.store.rows import Entry
from foveal.store.saving import save_sequence
from foveal.store.store import Store
from foveal.store.writer import Writer

NOTE_EVERY = 1 << 15
"""Tokens after which one notes how far a context was found right."""


class ContextRun:
    """A context computed from its first token on, or from where it is proved already."""

    def __init__(self, run: Recomputation, context: Context) -> None:
        self.call, self.context, self.runner = run, context, run.runner
        self.view = ContextView(run.store, context, run.fingerprint.digest)
        self.tokens, self.chain = self.view.tokens, self.view.chain
        self.note = _Note(run.store, context)
        self.wrong: list[int] = []
        self.bad: list[Entry] = []
        """Stored pages and tails that differ."""
        self.start = 0

    def run(self) -> None:
        with self._begin() as sequence:
            self.start = noted = sequence.length
            tails = {position for position, _ in self.context.tails}
            while sequence.length < self.context.length and not self.call.stopped():
                before = sequence.length
                end = min([self.context.length, before + self.call.chunk, *(at for at in tails if at > before)])
                self.runner.recompute(sequence, self.tokens[before:end].tolist())
                for number in range(before // PAGE_TOKENS, end // PAGE_TOKENS):
                    self._compare_page(sequence, number)
                if end in tails:
                    self._compare_tail(sequence)
                self.call.ran(self.context, end - before)
                if not self.bad and sequence.length >= noted + NOTE_EVERY:
                    noted = sequence.length
                    self.note.write(self.chain, noted // PAGE_TOKENS)
            if sequence.length < self.context.length:
                if not self.bad:
                    self.note.write(self.chain, sequence.length // PAGE_TOKENS)
                return
            self._conclude(sequence)

    def _begin(self) -> cache.Sequence:
        """Behind the pages that are known to be right, which were counted as due."""
        known = self.note.read(self.chain)
        while known < len(self.chain.keys) and self.chain.keys[known] in self.call.proved:
            known += 1
        pages = self.view.first_pages(self.runner.pool, known) if known else []
        sequence = self.call.sequence_at(self.tokens, pages, len(pages) * PAGE_TOKENS)
        self.call.due -= sequence.length
        return sequence

    def _compare_page(self, sequence: cache.Sequence, number: int) -> None:
        key, node = self.chain.keys[number], self.chain.nodes[number]
        computed = array_bytes(sequence.pages[number].data)
        payload, entry = self.view.stored_page(number)
        self.call.result.pages += 1
        if (payload is None and checksum(computed) == node.digest) or (payload is not None and payload == computed):
            if len(self.wrong) == 0:
                self.call.proved.add(key)
            return
        self.wrong.append(number)
        if entry is not None:
            self.bad.append(entry)

    def _compare_tail(self, sequence: cache.Sequence) -> None:
        sequence.keep_tail()
        tail, entry = self.view.any_tail(sequence.layout, sequence.length)
        if tail is None or entry is None:
            return  # it is computed again when it is needed
        self.call.result.tails += 1
        if not _is_tail_of(tail, sequence):
            self.bad.append(entry)
            if not self.wrong:  # else it follows
                where = f"the tail at {tail.position:,} is not what the network computes"
                self.call.result.problems.append(Problem("tail", where, (self.context.name,)))

    def _conclude(self, sequence: cache.Sequence) -> None:
        """All was run: tell what differs, and take over what may be."""
        result, name = self.call.result, self.context.name
        for first, last in _runs(self.wrong):
            result.problems.append(Problem("page", said_of_pages(first, last), (name,)))
        self.note.forget()
        right = not self.wrong and not self.bad
        if (right and not self.context.origin) or not (right or self.call.repair):
            return
        for position, _ in self.context.tails:  # those before the start were found right earlier
            if position < self.start:
                read = self.view.tail_reader(self.runner.pool.layout, position)
                sequence.add_tail(cache.LaterTail(position, read))
        if self.call.store.transact(lambda tx: self._take_over(tx, sequence)):
            (result.adopted if right else result.repaired).append(name)

    def _take_over(self, tx: Writer, sequence: cache.Sequence) -> bool:
        """Have the context consist of what was computed. Not when somebody changed it meanwhile."""
        row = tx.index.contexts.get(tx.names.label(self.context.name))
        if row is None or self.call.store.records.read(row) != self.context:
            return False
        for entry in self.bad:
            quarantine(tx, entry)
        saved = save_sequence(
            self.call.store, tx, sequence, self.call.fingerprint.digest, tails=self.context.keeps_tails
        )
        numbers = [number for number in tx.uses(self.context) if tx.index.objects.kind(number) == Kind.MAP]
        tx.put_context(self.context.replace(origin="", **saved.state), [*saved.objects, *numbers])
        return True


def _is_tail_of(stored: StoredTail, sequence: cache.Sequence) -> bool:
    """Whether a tail has the very bits that `sequence` ends with. (An MTP block that one of them did not run, or not as
    far, is no difference.)"""
    full, behind = divmod(sequence.length, PAGE_TOKENS)
    if behind:
        copy = sequence.pages[full].copy()
        copy.clear_after(sequence.layout, behind)
        if array_bytes(copy.data) != memoryview(stored.open_page):
            return False
    count = len(sequence.config.compress_ratios)
    mtp = {f"window.{layer}" for layer in range(sequence.config.num_hidden_layers, count)}
    found, due = unpack_arrays(stored.tensors), sequence.tail.tensors()
    passed = {name for name in mtp & found.keys() & due.keys() if found[name].shape != due[name].shape}
    return found.keys() == due.keys() and all(
        found[name].shape == due[name].shape and array_bytes(found[name]) == array_bytes(due[name])
        for name in due.keys() - passed
    )


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of ascending numbers."""
    first = last = -2
    for number in numbers:
        if number != last + 1:
            if first >= 0:
                yield first, last
            first = number
        last = number
    if first >= 0:
        yield first, last


class _Note:
    """How far a context was found right, for the next attempt when this one is stopped. It lies where the store keeps
    who uses what, and names a node, so that it says nothing once the context has other pages."""

    def __init__(self, store: Store, context: Context) -> None:
        self.store = store
        self.path: Path = store.folder / LIVE / f"{store.names.label(context.name).hex()}.proved"

    def read(self, chain: Chain) -> int:
        """How many pages that is."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(self.path.read_text(encoding="ascii"))
            key = bytes.fromhex(said["node"])
            if key in chain.keys and said["proof"] == self._proof(key):
                return chain.keys.index(key) + 1
        return 0

    def write(self, chain: Chain, pages: int) -> None:
        if not pages:
            return
        key = chain.keys[pages - 1]
        data = json.dumps({"node": key.hex(), "proof": self._proof(key)}).encode("ascii")
        with contextlib.suppress(OSError):  # it only spares time
            self.store.disk.make_folder(self.path.parent)
            self.store.disk.write_file(self.path, data, sync=False)

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _proof(self, key: bytes) -> str:
        return self.store.names.map_key(b"proved" + key).hex()
