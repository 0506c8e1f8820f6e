"""Bringing a memory up to date with its source: what changed, the two ways to take it in, and what each costs.

What is special here: the memory itself remembers in which order its files were read, for the map from tokens to files
has them in that order, so going on compares with that order and never with another one. To *append* is to read the new
versions behind everything, each after a line that says that it replaces the earlier one: it costs its own tokens. To
*rebuild* is to read the source anew from the first changed token on, and then what did not change comes first and what
did comes last: a file that changes often moves to the end by itself, where its next change costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from foveal.cache import CacheLayout
from foveal.cache.replay import replay_start
from foveal.memory.reading import IntArray, Target, TokenizedSource, first_difference, going_back
from foveal.memory.store.growth import growth
from foveal.memory.versions import Piece, latest_pieces, outdated_tokens, pieces
from foveal.sources import Skipped, SourceMap, TokenizedDocument, removal, replacing
from foveal.text import Tokenizer

Mode = Literal["append", "rebuild"]

MOVE_SHARE = 8
"""A changed file is moved behind the unchanged ones when reading its own unchanged head again costs at most an eighth
of what has to be read anyway."""


@dataclass
class Changes:
    """A memory compared with its source. `latest` are the memory's files, in order, and `same` those that are as they
    were read, as the source has them now; `unfinished` is a file of which the memory holds only the beginning."""

    latest: dict[str, Piece]
    same: dict[str, TokenizedDocument] = field(default_factory=dict)
    changed: dict[str, TokenizedDocument] = field(default_factory=dict)
    new: dict[str, TokenizedDocument] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    """Path to reason."""
    unfinished: TokenizedDocument | None = None

    @property
    def none(self) -> bool:
        """Whether the memory is what the source is."""
        return not (self.changed or self.new or self.removed or self.unfinished)

    def note_unfinished(self, piece: Piece, past: IntArray, document: TokenizedDocument) -> None:
        """When `piece` is only the beginning of `document`: reading it goes on."""
        if piece.after == len(past) and len(document.ids) > piece.after - piece.first:
            self.unfinished = document


def compare(
    places: SourceMap, past: IntArray, source: TokenizedSource, tokenizer: Tokenizer, order: tuple[str, ...] = ()
) -> Changes:
    """What is different in `source`. `past` are the memory's tokens. New files are listed in `order`, then in that of
    the source."""
    now = {document.path: document for document in source.documents}
    reasons = {skip.path: skip.reason for skip in source.skipped}
    found = Changes(latest_pieces(places))
    for path, piece in found.latest.items():
        document = now.get(path)
        if piece.removal:
            if document is None:
                found.note_unfinished(piece, past, removal(path, tokenizer))
        elif document is None:
            found.removed[path] = reasons.get(path, "deleted")
        elif (version := _version(piece, past, document, tokenizer)) is not None:
            found.same[path] = document
            found.note_unfinished(piece, past, version)
        else:
            found.changed[path] = document
    ranks = {path: rank for rank, path in enumerate(order)}
    fresh = [path for path in now if path not in found.same and path not in found.changed]
    fresh.sort(key=lambda path: ranks.get(path, len(ranks)))
    found.new = {path: now[path] for path in fresh}
    return found


def _version(
    piece: Piece, past: IntArray, document: TokenizedDocument, tokenizer: Tokenizer
) -> TokenizedDocument | None:
    """The way `document` was read into `piece`, plain or as one that replaces another; None when it was not. The last
    piece of a memory may be its beginning only."""
    ids = past[piece.first : piece.after]
    for version in (document, replacing(document, tokenizer)):
        whole = len(ids) == len(version.ids) or (piece.after == len(past) and len(ids) < len(version.ids))
        if whole and np.array_equal(ids, version.ids[: len(ids)]):
            return version
    return None


# ---------------------------------------------------------------------- the two ways


def appended(places: SourceMap, past: IntArray, changes: Changes, tokenizer: Tokenizer) -> Target:
    """All that is there, and behind it what is new: the rest of a file in work, notes of what is gone, new versions of
    what changed, new files."""
    target, start, documents = places.copy(), len(past), []
    if changes.unfinished is not None:
        start = changes.latest[changes.unfinished.path].first
        target.truncate(start)
        documents.append(changes.unfinished)
    documents += [removal(path, tokenizer) for path in changes.removed]
    documents += [replacing(document, tokenizer) for document in changes.changed.values()]
    documents += list(changes.new.values())
    return _target(target, past[:start], documents)


def rebuilt(places: SourceMap, past: IntArray, changes: Changes) -> Target:
    """The source without earlier versions and notes: unchanged files as they stand up to the first that is not, then
    the other unchanged ones, the changed, the new."""
    head: list[TokenizedDocument] = []
    waiting = changes.same | changes.changed
    for piece in pieces(places):
        document, ids = waiting.get(piece.path), past[piece.first : piece.after]
        whole = document is not None and np.array_equal(ids, document.ids)
        unchanged = (waiting[path] for path in changes.same if path in waiting)
        if document is not None and (whole or _stays(ids, document, unchanged)):
            head.append(waiting.pop(piece.path))
        if not whole:
            break
    return _target(SourceMap(), past[:0], [*head, *waiting.values(), *changes.new.values()])


def _stays(before: IntArray, document: TokenizedDocument, others: Iterable[TokenizedDocument]) -> bool:
    """Whether a changed file is better left where it is than moved behind `others`, the unchanged ones to come."""
    rest = sum(len(other.ids) for other in others if other is not document)
    return not rest or first_difference(before, document.ids) * MOVE_SHARE > rest


def _target(places: SourceMap, ids: IntArray, documents: list[TokenizedDocument]) -> Target:
    for document in documents:
        places.append(document)
    return Target(np.concatenate([ids, *(document.ids for document in documents)]), places)


# ---------------------------------------------------------------------- what they cost


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
