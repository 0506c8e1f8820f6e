"""Sequences of earlier prompts, kept in memory and in the store, as beginnings of later ones.

Tokens decide, and nothing else. A prompt starts from the sequence with which it has most tokens in common, forked where
they part; the store is asked where memory knows too little. Each beginning that was found, or not, comes with the
reason: the first token that differs, or that it was evicted, or that it is not saved yet.

kept = KeptPrefixes(engine, most_tokens=1 << 20)
start = engine.start(prompt, prefixes=kept)
kept.keep(sequence)                                  # a sequence that is at rest; it belongs to `kept` from now on
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal import cache
from foveal.batch import Priority
from foveal.batch.loop import EngineClosed
from foveal.cache.replay import replay_start
from foveal.config import PAGE_TOKENS
from foveal.engine import Engine, Start
from foveal.memory.prefixes import StoredPrefixes
from foveal.memory.prompts import SavedPrompts

IdArray = npt.NDArray[np.int32]

REMEMBERED = 1 << 14
"""Pages of sequences that are gone, of which is remembered that they were there."""
WORTH = PAGE_TOKENS
"""The store is asked when so many more tokens of a prompt may be found in it than memory has."""


@dataclass(frozen=True)
class Miss:
    """Why a prompt was not found whole.

    reason: ``first_difference``, ``evicted``, ``other model``, ``not yet saved`` or ``new``.
    position: the first token that was not found.   expected: the token that was kept there, where one was.
    """

    reason: str
    position: int
    expected: int | None = None


@dataclass(eq=False)
class _Entry:
    sequence: cache.Sequence
    ids: IdArray
    name: str = ""
    users: int = 0
    gone: bool = False


@dataclass
class _Running:
    """Prompts in work: their tokens are not kept yet."""

    prompts: dict[int, IdArray] = field(default_factory=dict)
    count: int = 0


class KeptPrefixes:
    """What is kept of earlier prompts of one tenant. `foveal.engine.Prefixes`. Safe to use from several threads."""

    def __init__(
        self,
        engine: Engine,
        *,
        stored: StoredPrefixes | None = None,
        saved: SavedPrompts | None = None,
        most_tokens: int = 1 << 20,
        most: int = 64,
        others: Iterable[KeptPrefixes] = (),
    ) -> None:
        """`stored`: what the store has. `saved`: where sequences are saved, too. `most_tokens`, `most`: tokens and
        sequences to keep in memory. `others`: what is kept for other models, to tell of."""
        self._engine, self._stored, self._saved, self._others = engine, stored, saved, others
        self._most_tokens, self._most = most_tokens, most
        self._entries: list[_Entry] = []  # the latest used last
        self._pages: OrderedDict[bytes, None] = OrderedDict()
        self._running = _Running()
        self.dropped = 0
        """Sequences that were given up to make room."""
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ finding

    def start(
        self,
        engine: Engine,
        tokens: Any,
        *,
        most: int | None = None,
        after: cache.Sequence | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Start | None:
        """See `foveal.engine.Prefixes`."""
        ids = np.asarray(tokens, dtype=np.int32)
        most = len(ids) if most is None else most
        held = after.length if after is not None else 0
        entry, length = self._take(ids[:most])
        try:
            length -= length % engine.grain if length < len(ids) else 0
            run_again = self._run_again(entry, length)
            mine = length - run_again if entry is not None else 0
            stored = self._from_store(engine, tokens, most, after, max(mine, held), priority)
            if stored is not None:
                return stored
            if entry is None or mine <= held:
                return None
            return Start(engine.fork(entry.sequence, length), length - held, run_again)
        finally:
            self._give_back(entry)

    def _take(self, ids: IdArray) -> tuple[_Entry | None, int]:
        """The entry that agrees with most of `ids`, and with how many. It is not freed before it is given back."""
        with self._lock:
            best, length = self._best(ids)
            if best is not None:
                best.users += 1
                self._entries.remove(best)
                self._entries.append(best)
            return best, length

    def _best(self, ids: IdArray) -> tuple[_Entry | None, int]:
        best, most = None, 0
        for entry in reversed(self._entries):
            if most and (len(entry.ids) <= most or not np.array_equal(entry.ids[:most], ids[:most])):
                continue
            length = common(entry.ids, ids)
            if length > most:
                best, most = entry, length
        return best, most

    def _run_again(self, entry: _Entry | None, length: int) -> int:
        """How many of the `length` tokens a fork of `entry` there has to run."""
        if entry is None or length == len(entry.ids):
            return 0
        tails = [tail.position for tail in entry.sequence.kept_tails if tail.position <= length]
        return length - max(max(tails, default=0), replay_start(self._engine.config, length))

    def _from_store(
        self,
        engine: Engine,
        tokens: Any,
        most: int,
        after: cache.Sequence | None,
        known: int,
        priority: Priority,
    ) -> Start | None:
        """What the store has, if that is more than the `known` tokens."""
        if self._stored is None or known + WORTH > most:
            return None
        found = self._stored.start(engine, tokens, most=most, after=after, priority=priority)
        held = after.length if after is not None else 0
        if found is not None and held + found.reused <= known:
            engine.free(found.sequence)
            return None
        return found

    def _give_back(self, entry: _Entry | None) -> None:
        if entry is None:
            return
        with self._lock:
            entry.users -= 1
            free = entry.gone and not entry.users
        if free:
            self._free(entry)

    # ------------------------------------------------------------------ keeping

    def keep(self, sequence: cache.Sequence, *, save: bool = True) -> None:
        """Take over a sequence that nobody runs on any more. One that it goes on from is given up for it. `save`: in
        the store too, where there is one. Waits for nothing."""
        entry = _Entry(sequence, np.asarray(sequence.tokens).astype(np.int32))
        with self._lock:
            gone = [old for old in self._entries if _begins(entry.ids, old.ids)]
            entry.name = next((old.name for old in gone if old.name), "")
            known = any(_begins(old.ids, entry.ids) for old in self._entries if len(old.ids) > len(entry.ids))
            if known:
                gone = [entry]
            else:
                self._entries.append(entry)
                entry.users += save and self._saved is not None
            gone += self._too_many(gone)
            free = self._drop(gone)
        for old in free:
            self._free(old)
        if save and self._saved is not None and not known:
            entry.name = self._saved.save(sequence, entry.name, lambda: self._give_back(entry))

    def _free(self, entry: _Entry) -> None:
        """Have it freed between two steps, and wait for nothing."""
        if self._engine.loop.is_here:
            entry.sequence.free()
            return
        try:
            self._engine.loop.post(entry.sequence.free)
        except EngineClosed:
            entry.sequence.free()

    def _too_many(self, gone: list[_Entry]) -> list[_Entry]:
        """The entries used longest ago that there is no room for."""
        left = [entry for entry in self._entries if entry not in gone]
        tokens, dropped = sum(len(entry.ids) for entry in left), []
        while len(left) > 1 and (tokens > self._most_tokens or len(left) > self._most):
            dropped.append(left.pop(0))
            tokens -= len(dropped[-1].ids)
            self._remember(dropped[-1].ids)
        return dropped

    def _drop(self, gone: list[_Entry]) -> list[_Entry]:
        """Take entries out; those that can be freed now."""
        for entry in gone:
            entry.gone = True
            if entry in self._entries:
                self._entries.remove(entry)
        return [entry for entry in gone if not entry.users]

    def _remember(self, ids: IdArray) -> None:
        """Of a sequence that is given up: that it was once here."""
        self.dropped += 1
        for page in _pages(ids):
            self._pages[page] = None
            self._pages.move_to_end(page)
        while len(self._pages) > REMEMBERED:
            self._pages.popitem(last=False)

    def make_room(self) -> bool:
        """Give up the half of the sequences at rest that were used longest ago, or, where there are none, one that
        waits to be saved; says whether there was any. Their pages are free at once where the engine's own thread asks,
        between two steps."""
        with self._lock:
            resting = [entry for entry in self._entries if not entry.users]
            gone = resting[: (len(resting) + 1) // 2]
            for entry in gone:
                self._remember(entry.ids)
            self._drop(gone)
        for entry in gone:
            self._free(entry)
        return bool(gone) or (self._saved is not None and self._saved.give_up())

    @property
    def holds(self) -> bool:
        """Whether anything is kept, or being saved."""
        with self._lock:
            kept = bool(self._entries)
        return kept or (self._saved is not None and self._saved.busy)

    def clear(self) -> None:
        """Save what is not saved yet, and give everything back."""
        if self._saved is not None:
            self._saved.close()
        with self._lock:
            free = self._drop(list(self._entries))
        for entry in free:
            self._free(entry)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences that are kept; shared ones count each time."""
        with self._lock:
            return sum(len(entry.ids) for entry in self._entries)

    # ------------------------------------------------------------------ why not

    def running(self, ids: Any) -> int:
        """Say that a prompt is in work; returns what `ended` takes."""
        with self._lock:
            self._running.count += 1
            self._running.prompts[self._running.count] = np.asarray(ids, dtype=np.int32)
            return self._running.count

    def ended(self, number: int) -> None:
        """The prompt is kept now, or never will be."""
        with self._lock:
            self._running.prompts.pop(number, None)

    def why(self, tokens: Any, found: int, number: int | None = None) -> Miss | None:
        """Why no more than `found` of a prompt's tokens were found; None if all were but the last. `number`: what
        `running` gave for this prompt."""
        ids = np.asarray(tokens, dtype=np.int32)
        if found >= len(ids) - 1:
            return None
        with self._lock:
            best, length = self._best(ids)
            evicted = self._longest(ids) > max(found, length)
            working = self._longest_running(ids, number)
        if evicted:
            return Miss("evicted", found)
        if working > max(found, length) + PAGE_TOKENS:
            return Miss("not yet saved", found)
        if any(other.knows(ids) > max(found, length) + PAGE_TOKENS for other in self._others if other is not self):
            return Miss("other model", found)
        if best is not None and length < len(best.ids) and length:
            return Miss("first_difference", length, int(best.ids[length]))
        return Miss("new", max(found, length))

    def _longest_running(self, ids: IdArray, number: int | None) -> int:
        prompts = self._running.prompts.items()
        return max((common(other, ids) for key, other in prompts if key != number), default=0)

    def knows(self, ids: IdArray) -> int:
        """How many of the first of `ids` are kept."""
        with self._lock:
            return self._best(ids)[1]

    def _longest(self, ids: IdArray) -> int:
        """How many of the first of `ids` were kept once."""
        if not self._pages:
            return 0
        place = 0
        for number, page in enumerate(_pages(ids), start=1):
            if page not in self._pages:
                break
            place = number * PAGE_TOKENS
        return place


def common(one: IdArray, other: IdArray) -> int:
    """How many of the first ids of both are the same."""
    size = min(len(one), len(other))
    for first in range(0, size, 4096):
        after = min(first + 4096, size)
        differ = one[first:after] != other[first:after]
        if differ.any():
            return first + int(differ.argmax())
    return size


def _begins(ids: IdArray, with_: IdArray) -> bool:
    return len(with_) <= len(ids) and bool(np.array_equal(ids[: len(with_)], with_))


def _pages(ids: IdArray) -> Iterable[bytes]:
    """A digest for each full page, of all tokens up to its end."""
    digest = blake2b(digest_size=12)
    for first in range(0, len(ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        digest.update(ids[first : first + PAGE_TOKENS].tobytes())
        yield digest.digest()
