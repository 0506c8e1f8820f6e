"""Are pages what the network computes? A checksum says that bytes are those that were written, not that they are right.

The network runs over the tokens of a context from the first on, and every page and tail that the store has is compared
with what comes out, bit for bit. An imported context of which all is equal is taken over: from then on its pages are as
good as if they had been computed here. A sample runs single pages only, each from the pages before it: it says that a
page follows from those, and nothing about them.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from foveal import cache
from foveal.cache.replay import replay, replay_start
from foveal.config import PAGE_TOKENS
from foveal.engine import Fingerprint, ParameterError
from foveal.memory.errors import CorruptMemory, StoreError
from foveal.memory.store import contexts, loading
from foveal.memory.store.chain import Chain, read_chain
from foveal.memory.store.index import Entry
from foveal.memory.store.loading import Runner, read_pages, read_tail
from foveal.memory.store.names import checksum
from foveal.memory.store.objects import Context, StoredTail
from foveal.memory.store.records import Kind
from foveal.memory.store.saving import let_go_of, save_sequence
from foveal.memory.store.store import LIVE, Store
from foveal.memory.store.tensors import tensor_bytes, token_tensor, unpack_tensors
from foveal.memory.store.verify import Problem
from foveal.memory.store.writer import Writer

OnRecompute = Callable[[str, int, int], None]
"""Called with a context's name, and the tokens that were run and are to be run in all."""
NOTE_EVERY = 1 << 15
"""Tokens after which one notes how far a context was found right."""


@dataclass
class Recomputed:
    """`tokens` were run and `pages` and `tails` compared. `adopted` are imported contexts that were taken over, and
    `repaired` those whose pages were replaced; `complete` is off when it was stopped."""

    problems: list[Problem] = field(default_factory=list)
    tokens: int = 0
    pages: int = 0
    tails: int = 0
    adopted: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    complete: bool = True


def recompute(
    store: Store,
    names: Iterable[str],
    fingerprint: Fingerprint,
    runner: Runner,
    *,
    chunk: int,
    sample: int | None = None,
    repair: bool = False,
    rng: random.Random | None = None,
    progress: OnRecompute | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Recomputed:
    """Compute the contexts called `names` again, or `sample` of their pages, and compare.

    `repair` puts what was computed in the place of what differs. `chunk`: the tokens that the runner takes at once;
    `should_stop` is asked in between. Raises `MemoryNotFound`, `FingerprintMismatch`, `CacheFull`, and `StoreError` for
    a backend whose last bits depend on how the tokens are cut.
    """
    if runner.grain != 1:
        raise StoreError(
            "on this backend the last bits of a page depend on how its tokens were cut, so nothing can be told from "
            "bytes that differ; use the native backend"
        )
    let_go_of(store, runner.pool)
    found = [store.context(name) for name in names]
    for context in found:
        contexts.check_fingerprint(context, fingerprint)
    return _Recomputing(store, fingerprint, runner, chunk, repair, progress, should_stop).run(found, sample, rng)


class _Recomputing:
    """One call of `recompute`. `proved`: keys of nodes whose pages, and all before, came out as they are stored."""

    def __init__(
        self,
        store: Store,
        fingerprint: Fingerprint,
        runner: Runner,
        chunk: int,
        repair: bool,
        progress: OnRecompute | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.store, self.fingerprint, self.runner, self.chunk, self.repair = store, fingerprint, runner, chunk, repair
        self.progress, self.should_stop = progress, should_stop
        self.result = Recomputed()
        self.proved: set[bytes] = set()
        self.due = 0

    def run(self, found: list[Context], sample: int | None, rng: random.Random | None) -> Recomputed:
        if sample is not None:
            found = self._sample(found, sample, rng or random.SystemRandom())
            if not self.repair:
                return self.result
        self.due = self.result.tokens + sum(context.length for context in found)
        for context in found:
            with self._telling(context):
                _One(self, context).run()
            if not self.result.complete:
                break
        return self.result

    @contextlib.contextmanager
    def _telling(self, context: Context) -> Iterator[None]:
        """What makes that a context cannot be run is a problem of this one."""
        try:
            yield
        except cache.CacheFull:
            raise
        except (CorruptMemory, ParameterError, cache.CacheError) as error:
            self.result.problems.append(Problem("tokens", str(error), (context.name,), lost=True))

    def stopped(self) -> bool:
        if self.should_stop is not None and self.should_stop():
            self.result.complete = False
        return not self.result.complete

    def ran(self, context: Context, tokens: int) -> None:
        self.result.tokens += tokens
        if self.progress is not None:
            self.progress(context.name, self.result.tokens, max(self.due, self.result.tokens))

    # ------------------------------------------------------------------ a sample

    def _sample(self, found: list[Context], count: int, rng: random.Random) -> list[Context]:
        """Compute `count` pages again, each from those before it; returns the contexts with one that differs."""
        pages: dict[bytes, tuple[Context, int]] = {}
        for context in found:
            with self._telling(context):
                chain = read_chain(self.store, context, self.fingerprint.digest)
                present = next((n for n, page in enumerate(chain.pages) if page is None), len(chain.pages))
                pages |= {key: (context, number) for number, key in enumerate(chain.keys[:present])}
        chosen = rng.sample(sorted(pages), min(count, len(pages)))
        window = replay_window(self.runner.pool.layout)
        self.due = sum(min(pages[key][1] * PAGE_TOKENS, window) + PAGE_TOKENS for key in chosen)
        wrong: dict[str, Context] = {}
        for context, number in sorted((pages[key] for key in chosen), key=lambda pair: (pair[0].name, pair[1])):
            if self.stopped():
                break
            with self._telling(context):
                if not self._page_is_right(context, number):
                    self.result.problems.append(Problem("page", _said(number, number), (context.name,)))
                    wrong[context.name] = context
        return list(wrong.values())

    def _page_is_right(self, context: Context, number: int) -> bool:
        chain = read_chain(self.store, context, self.fingerprint.digest)
        tokens, start = token_tensor(chain.tokens), number * PAGE_TOKENS
        pages = stored_pages(self.store, chain, self.runner, number + 1)
        if len(pages) <= number:
            return True  # it was evicted, or found damaged, just now: nothing to compare with
        with _at(self.runner, tokens, pages, start) as sequence:
            before = sequence.length - min(start, replay_window(self.runner.pool.layout))
            self.runner.prefill(sequence, tokens[start : start + PAGE_TOKENS].tolist())
            self.result.pages += 1
            self.ran(context, sequence.length - before)
            return tensor_bytes(sequence.pages[number].data) == tensor_bytes(pages[number])


def stored_pages(store: Store, chain: Chain, runner: Runner, most: int) -> list[Tensor]:
    """The verified bytes of the first pages, up to the first that is not there, at most so many."""
    part = Chain(chain.keys[:most], chain.nodes[:most], chain.pages[:most], chain.tokens, chain.root)
    found: list[Tensor] = []
    for page in read_pages(store, part, runner.pool, []):
        if page is None:
            break
        found.append(page)
    return found


def replay_window(layout: cache.CacheLayout) -> int:
    """Tokens that are run again to go on behind a page."""
    far = 1 << 40
    return far - replay_start(layout.config, far)


def _at(runner: Runner, tokens: Tensor, pages: list[Tensor], length: int) -> cache.Sequence:
    """A sequence over the first `length` tokens, a multiple of 256, with these pages."""
    if not length:
        return runner.new_sequence()
    layout = runner.pool.layout
    return replay(runner.restore_sequence, runner.prefill, layout, tokens, pages[: length // PAGE_TOKENS], length)


def _said(first: int, last: int) -> str:
    which = f"page {first}" if first == last else f"pages {first} to {last}"
    tokens = f"tokens {first * PAGE_TOKENS:,} to {(last + 1) * PAGE_TOKENS - 1:,}"
    return (
        f"{which} ({tokens}) is not what the network computes"
        if first == last
        else (f"{which} ({tokens}) are not what the network computes")
    )


# ---------------------------------------------------------------------- a whole context


class _One:
    """A context computed from its first token on, or from where it is proved already."""

    def __init__(self, all: _Recomputing, context: Context) -> None:
        self.all, self.context, self.store, self.runner = all, context, all.store, all.runner
        self.chain = read_chain(all.store, context, all.fingerprint.digest)
        self.tokens = token_tensor(self.chain.tokens)
        self.note = _Note(all.store, context)
        self.wrong: list[int] = []
        self.bad: list[Entry] = []
        """Stored pages and tails that differ."""
        self.start = 0

    def run(self) -> None:
        with self._begin() as sequence:
            self.start = noted = sequence.length
            tails = dict(self.context.tails)
            while sequence.length < self.context.length and not self.all.stopped():
                before = sequence.length
                end = min([self.context.length, before + self.all.chunk, *(at for at in tails if at > before)])
                self.runner.prefill(sequence, self.tokens[before:end].tolist())
                for number in range(before // PAGE_TOKENS, end // PAGE_TOKENS):
                    self._compare_page(sequence, number)
                if end in tails:
                    self._compare_tail(sequence, tails[end])
                self.all.ran(self.context, end - before)
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
        while known < len(self.chain.keys) and self.chain.keys[known] in self.all.proved:
            known += 1
        pages = stored_pages(self.store, self.chain, self.runner, known) if known else []
        sequence = _at(self.runner, self.tokens, pages, len(pages) * PAGE_TOKENS)
        self.all.due -= sequence.length
        return sequence

    def _compare_page(self, sequence: cache.Sequence, number: int) -> None:
        key, node, seen = self.chain.keys[number], self.chain.nodes[number], self.chain.pages[number]
        computed = tensor_bytes(sequence.pages[number].data)
        payload, entry = self.store.fetch(Kind.PAGE, key, seen) if seen is not None else (None, None)
        self.all.result.pages += 1
        if (payload is None and checksum(computed) == node.digest) or (payload is not None and payload == computed):
            if len(self.wrong) == 0:
                self.all.proved.add(key)
            return
        self.wrong.append(number)
        if entry is not None:
            self.bad.append(entry)

    def _compare_tail(self, sequence: cache.Sequence, key: bytes) -> None:
        sequence.keep_tail()
        tail, entry = read_tail(self.store, key, sequence.layout)
        if tail is None or entry is None:
            return  # it is computed again when it is needed
        self.all.result.tails += 1
        if not is_tail_of(tail, sequence):
            self.bad.append(entry)
            if not self.wrong:  # else it follows
                where = f"the tail at {tail.position:,} is not what the network computes"
                self.all.result.problems.append(Problem("tail", where, (self.context.name,)))

    def _conclude(self, sequence: cache.Sequence) -> None:
        """All was run: tell what differs, and take over what may be."""
        result, name = self.all.result, self.context.name
        for first, last in _runs(self.wrong):
            result.problems.append(Problem("page", _said(first, last), (name,)))
        self.note.forget()
        right = not self.wrong and not self.bad
        if (right and not self.context.origin) or not (right or self.all.repair):
            return
        for position, key in self.context.tails:  # those before the start were found right earlier
            if position < self.start:
                read = partial(self._read_earlier, key, position)
                sequence.add_tail(cache.LaterTail(position, read))
        if self.store.transact(lambda tx: self._take_over(tx, sequence)):
            (result.adopted if right else result.repaired).append(name)

    def _read_earlier(self, key: bytes, position: int) -> cache.Tail | None:
        tail, _ = read_tail(self.store, key, self.runner.pool.layout)
        if tail is None or tail.position != position:
            return None
        layout, device = self.runner.pool.layout, self.runner.pool.device
        return cache.Tail.from_tensors(layout, position, unpack_tensors(tail.tensors), device)

    def _take_over(self, tx: Writer, sequence: cache.Sequence) -> bool:
        """Have the context consist of what was computed. Not when somebody changed it meanwhile."""
        row = tx.index.context(tx.names.label(self.context.name))
        if row is None or self.store.read_context(row) != self.context:
            return False
        for entry in self.bad:
            loading.quarantine(tx, entry)
        saved = save_sequence(self.store, tx, sequence, self.all.fingerprint.digest, tails=self.context.keeps_tails)
        numbers = [number for number in tx.uses(self.context) if tx.index.kind(number) == Kind.MAP]
        tx.put_context(self.context.replace(origin="", **saved.state), [*saved.objects, *numbers])
        return True


def is_tail_of(stored: StoredTail, sequence: cache.Sequence) -> bool:
    """Whether a tail has the very bits that `sequence` ends with. (An MTP block that one of them did not run, or not as
    far, is no difference.)"""
    full, behind = divmod(sequence.length, PAGE_TOKENS)
    if behind:
        copy = cache.Page(sequence.pages[full].data.clone())
        copy.clear_after(sequence.layout, behind)
        if tensor_bytes(copy.data) != memoryview(stored.open_page):
            return False
    count = len(sequence.config.compress_ratios)
    mtp = {f"window.{layer}" for layer in range(sequence.config.num_hidden_layers, count)}
    found, due = unpack_tensors(stored.tensors), sequence.tail.tensors()
    passed = {name for name in mtp & found.keys() & due.keys() if found[name].shape != due[name].shape}
    return found.keys() == due.keys() and all(
        found[name].shape == due[name].shape and tensor_bytes(found[name]) == tensor_bytes(due[name])
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
