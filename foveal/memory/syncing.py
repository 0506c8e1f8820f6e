"""Bringing a memory up to date with its source: what the two ways to do it cost, and doing it.

A plan holds the source as it was found and runs nothing, so that what is done is what was planned
(`foveal.memory.changes` has the two ways).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from foveal.batch import Kind, Priority
from foveal.cache import CacheLayout
from foveal.cache.replay import replay_start
from foveal.memory.changes import Changes, IntArray, Target, appended, going_back, rebuilt
from foveal.memory.facts import Facts
from foveal.memory.gathering import TokenizedSource
from foveal.memory.progress import OnProgress, Watch
from foveal.memory.reading import Taking, look
from foveal.memory.versions import outdated_tokens
from foveal.sources import Skipped, SourceMap
from foveal.store.errors import ReadError
from foveal.store.growth import growth
from foveal.text import Tokenizer

if TYPE_CHECKING:
    from foveal.memory.memory import Memory

Mode = Literal["append", "rebuild"]

ABOUT_BYTES = 1536
"""About what a context's record takes besides the facts."""


def plan_sync(memory: Memory, progress: OnProgress | None) -> SyncPlan:
    """See `Memory.plan_sync`."""
    if memory.options.once_only:
        raise ReadError(
            f"memory {memory.name or 'without a name'} was not read from files, so nothing can be compared with it; "
            "read it anew, or append to it"
        )
    source, changes = look(memory, None, progress)
    going_on: Mode | None = None if memory.complete else "append" if memory.appending else "rebuild"
    return make_plan(_present(memory, source), source, changes, memory.engine.tokenizer, going_on=going_on)


def sync(memory: Memory, mode: Mode | None, plan: SyncPlan | None, watch: Watch) -> SyncPlan:
    """See `Memory.sync`."""
    plan = plan or plan_sync(memory, watch.progress)
    if plan.length != memory.length:
        raise ReadError(
            f"the plan was made when the memory had {plan.length} tokens; it has {memory.length}: plan anew"
        )
    chosen = mode or plan.recommended
    if not plan.is_needed(chosen):
        return plan
    taking = Taking(memory, plan.targets[chosen], plan.source, Kind.SYNC, watch)  # refuses what is too long
    memory.appending = chosen == "append"
    taking.run()
    return plan


def _present(memory: Memory, source: TokenizedSource) -> Present:
    engine, sequence = memory.engine, memory.sequence
    return Present(
        past=sequence.tokens,
        places=memory.places,
        layout=engine.pool.layout,
        chunk=engine.batch.scheduler.chunk,
        grain=engine.grain,
        tail_every=sequence.tail_every,
        keeps_tails=memory.tail_every != "none",
        tails=tuple(tail.position for tail in sequence.kept_tails),
        speed=memory.totals.tokens_per_second or _measure_speed(memory, source),
        about=len(json.dumps(Facts.of(memory).to_dict())) + ABOUT_BYTES,
    )


def _measure_speed(memory: Memory, source: TokenizedSource) -> float:
    """Tokens a second, measured on a chunk of the source that is read and dropped."""
    engine = memory.engine
    ids = np.concatenate([document.ids for document in source.documents])[: engine.batch.scheduler.chunk]
    with memory.fork(min(memory.length, engine.batch.context_length - len(ids))) as trial:
        started = time.perf_counter()
        engine.prefill(trial.sequence, ids, kind=Kind.SYNC, priority=Priority.BACKGROUND)
        return len(ids) / max(time.perf_counter() - started, 1e-9)


# ---------------------------------------------------------------------- what the two ways cost


@dataclass(frozen=True)
class SyncCost:
    """What one way costs. `read` tokens are run by the network, in about `seconds` (None: no speed was measured yet);
    `kept` are those of the memory that stay; `tokens` it has afterwards, `outdated` of them of earlier versions.
    `store_bytes` is what saving adds to a store that has the memory as it is, and nothing else of it."""

    read: int
    kept: int
    tokens: int
    outdated: int
    seconds: float | None
    store_bytes: int


@dataclass(frozen=True)
class SyncPlan:
    """What is different between a memory and its source, and what the two ways to take it in cost (`Memory.plan_sync`).

    `removed` has the paths that are gone and why (deleted, or what makes that they are skipped now). `recommended`: see
    `recommend`. `outdated` are the memory's tokens of earlier versions, which only rebuilding drops.
    """

    changed: tuple[str, ...]
    new: tuple[str, ...]
    removed: tuple[Skipped, ...]
    outdated: int
    costs: Mapping[Mode, SyncCost]
    recommended: Mode
    up_to_date: bool
    """Nothing is different."""
    targets: Mapping[Mode, Target] = field(repr=False, compare=False)
    source: TokenizedSource = field(repr=False, compare=False)
    length: int = 0
    """Tokens of the memory when the plan was made."""

    def is_needed(self, mode: Mode) -> bool:
        """Whether `mode` would do anything: something is different, or rebuilding drops earlier versions."""
        return not self.up_to_date or (mode == "rebuild" and self.outdated > 0)


APPEND_UP_TO = 0.25
"""Share of outdated tokens from which on rebuilding is recommended."""
REBUILD_WITHIN = 2
"""Rebuilding is recommended when it reads at most so many times the tokens that appending does."""


def recommend(append: SyncCost, rebuild: SyncCost) -> Mode:
    """Append, unless rebuilding reads at most twice as much, or more than a quarter of the memory would be outdated."""
    if append.outdated > append.tokens * APPEND_UP_TO or rebuild.read <= REBUILD_WITHIN * append.read:
        return "rebuild"
    return "append"


@dataclass(frozen=True)
class Present:
    """A memory as a plan sees it: its tokens, its map, where it can go back to, how fast it was read, how much is said
    of it (bytes)."""

    past: IntArray
    places: SourceMap
    layout: CacheLayout
    chunk: int
    grain: int
    tail_every: int | None
    keeps_tails: bool
    tails: tuple[int, ...]
    speed: float | None
    about: int


def make_plan(
    memory: Present, source: TokenizedSource, changes: Changes, tokenizer: Tokenizer, *, going_on: Mode | None
) -> SyncPlan:
    """Both ways and their costs. `going_on` is the way that was begun and not finished, which is then recommended."""
    targets: dict[Mode, Target] = {
        "append": appended(memory.places, memory.past, changes, tokenizer),
        "rebuild": rebuilt(memory.places, memory.past, changes),
    }
    costs = {mode: _cost(memory, mode, target) for mode, target in targets.items()}
    removed = tuple(Skipped(path, reason) for path, reason in changes.removed.items())
    return SyncPlan(
        changed=tuple(changes.changed),
        new=tuple(changes.new),
        removed=removed,
        outdated=outdated_tokens(memory.places),
        costs=costs,
        recommended=going_on or recommend(costs["append"], costs["rebuild"]),
        up_to_date=changes.none and going_on is None,
        targets=targets,
        source=source,
        length=len(memory.past),
    )


def _cost(memory: Present, mode: Mode, target: Target) -> SyncCost:
    tokens, length = len(target.ids), len(memory.past)
    common, cut = (length, length) if mode == "append" else going_back(memory.past, target.ids, memory.grain)
    start = written = cut if cut == length else max(tail for tail in memory.tails if tail <= cut)
    if cut < length and memory.grain == 1 and (replayed := replay_start(memory.layout.config, cut)) > start:
        start, written = replayed, cut
    return SyncCost(
        read=tokens - start,
        kept=common,
        tokens=tokens,
        outdated=outdated_tokens(target.places),
        seconds=(tokens - start) / memory.speed if memory.speed is not None else None,
        store_bytes=growth(
            memory.layout,
            common=common,
            tokens=tokens,
            tails=_new_tails(memory, written, tokens) if memory.keeps_tails else (),
            before=memory.places,
            after=target.places,
            about=memory.about,
        ),
    )


def _new_tails(memory: Present, start: int, end: int) -> set[int]:
    """Where tails are made while tokens are read from `start` to `end`: see `run_tokens` and `Sequence.tail_every`."""
    chunk, every = memory.chunk, memory.tail_every
    made = {end} if memory.grain == 1 else {end - end % chunk, end}
    if every is not None:
        made |= {-(-place * every // chunk) * chunk for place in range(start // every + 1, end // every + 1)}
    return {place for place in made if start < place <= end}
