"""A memory compared with its source, and the two ways to take in what is different.

The memory itself remembers in which order its files were read, for the map from tokens to files has them in that order,
so going on compares with that order and never with another one. To *append* is to read the new versions behind
everything, each after a line that says that it replaces the earlier one: it costs its own tokens. To *rebuild* is to
read the source anew from the first changed token on, and then what did not change comes first and what did comes last:
a file that changes often moves to the end by itself, where its next change costs little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from foveal.memory.gathering import TokenizedSource
from foveal.memory.versions import Piece, latest_pieces, pieces
from foveal.sources import SourceMap, TokenizedDocument, removal, replacing
from foveal.text import Tokenizer

IntArray = npt.NDArray[np.int32]

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


@dataclass(frozen=True)
class Target:
    """What a memory shall hold: ids int32 [n], and where each token stands."""

    ids: IntArray
    places: SourceMap


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


# ---------------------------------------------------------------------- what two texts share


def first_difference(one: IntArray, other: IntArray) -> int:
    """How many tokens two texts share at their beginning."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


def going_back(past: IntArray, ids: IntArray, grain: int) -> tuple[int, int]:
    """The tokens that `past` and `ids` share, and where to go back to for `ids`: there, or at the cut before."""
    common = first_difference(past, ids)
    ends_here = common == len(past) == len(ids)
    return common, common if ends_here else common - common % grain
