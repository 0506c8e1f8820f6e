"""What a sequence remembers between steps, as a network sees it: the words that networks and caches have in common.

A network never owns memory. It asks a `SequenceState` for what the past left behind and hands back what the new tokens
leave; everything else follows from the absolute position (docs/design.md). `foveal.cache` speaks this on numpy arrays
(`Sequence`: pages and tail), `foveal.model` on torch tensors (`PlainState`, the definition, with gradients); a backend
converts at its edge.

The order of calls in one step is fixed: for every layer `window`, `open_rows`, `append`, `entries`; then `advance`
once. `entries` after `append` already shows the new entries; `length` moves only with `advance`.

Shape legend: t = tokens so far, n = new tokens, W = sliding_window, c = head_dim, w = width of a compressor's rows,
e = entry width (head_dim, or index_head_dim).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from foveal.config import CSA_RATIO, LayerKind, ModelConfig

A = TypeVar("A")
"""The arrays: numpy's or torch's."""


class Part(enum.StrEnum):
    """Which compressor of a layer: the one for attention entries, or (CSA only) the one for index keys."""

    MAIN = "main"
    INDEX = "index"


def parts_of(config: ModelConfig, layer: int) -> tuple[Part, ...]:
    """The compressors `layer` has: none, MAIN (HCA) or MAIN and INDEX (CSA)."""
    kind = config.kind(layer)
    if kind is LayerKind.CSA:
        return (Part.MAIN, Part.INDEX)
    return (Part.MAIN,) if kind is LayerKind.HCA else ()


def entry_width(config: ModelConfig, part: Part) -> int:
    """Channels of one entry of `part`."""
    return config.head_dim if part is Part.MAIN else config.index_head_dim


def row_width(config: ModelConfig, layer: int, part: Part) -> int:
    """Channels of one open row: twice the entry width in CSA layers (F and S halves), once in HCA layers."""
    return entry_width(config, part) * (2 if config.kind(layer) is LayerKind.CSA else 1)


def open_row_count(ratio: int, length: int) -> int:
    """Rows a compressor still needs after `length` tokens (streaming state of the official code).

    CSA keeps the last complete window (the next entry overlaps it) and the partial one: 4 to 7 rows once there is a
    complete window. HCA keeps only the partial window: 0 to 127 rows.
    """
    partial = length % ratio
    overlap = ratio if ratio == CSA_RATIO and length >= ratio else 0
    return overlap + partial


@dataclass(frozen=True)
class OpenRows(Generic[A]):
    """A compressor's unfinished input: the rows of the last `open_row_count` tokens, oldest first, fp32.

    `kv` and `gate` are [rows, w]; `gate` already contains the position bias `ape`.
    """

    kv: A
    gate: A


@dataclass(frozen=True)
class LayerUpdate(Generic[A]):
    """What n new tokens leave in one layer: `window` [n, c] raw KV rows, and for each compressor the rows that stay
    open after them and the new entries [m, e] they completed."""

    window: A
    open_rows: dict[Part, OpenRows[A]] = field(default_factory=dict)
    entries: dict[Part, A] = field(default_factory=dict)


class SequenceState(Protocol[A]):
    """The past of one sequence, as the network needs it."""

    @property
    def length(self) -> int:
        """Tokens so far, t."""
        ...

    def window(self, layer: int) -> A:
        """Raw KV rows [min(t, W - 1), c] of the last positions before t, oldest first."""
        ...

    def open_rows(self, layer: int, part: Part) -> OpenRows[A]:
        """The compressor's open rows at t: ``open_row_count(ratio, t)`` of them."""
        ...

    def append(self, layer: int, update: LayerUpdate[A]) -> None:
        """Take what the new tokens leave in `layer`. Called once a step for every layer, in order."""
        ...

    def entries(self, layer: int, part: Part) -> A:
        """All entries [s, e] of `layer`, the ones just appended included, in the order of their windows."""
        ...

    def advance(self, tokens: A) -> None:
        """End the step: the n `tokens` (integers) are now part of the past."""
        ...


@dataclass(frozen=True)
class Segment(Generic[A]):
    """The next `count` tokens of a flat batch continue the sequence behind `state`."""

    state: SequenceState[A]
    count: int


AnyState = SequenceState[Any]
"""A state on whatever arrays its network takes."""
AnySegment = Segment[Any]


@dataclass(frozen=True)
class LayerTrace(Generic[A]):
    """Where the attention of one layer went, for the last token of one segment, summed over heads.

    `entries` [k] int64: compressed entries looked at (entry s covers tokens s * ratio .. s * ratio + ratio - 1);
    `entry_mass` [k] and `window_mass` [w] fp32, the latter for positions t-w+1..t, w = min(t + 1, sliding window).
    Masses sum to less than the number of heads; the rest went into the sinks.
    """

    layer: int
    segment: int
    ratio: int
    entries: A
    entry_mass: A
    window_mass: A


@dataclass
class Observer(Generic[A]):
    """Collects the traces of the last tokens of a forward pass. Without one, nothing is computed for it."""

    traces: list[LayerTrace[A]] = field(default_factory=list)


LOOK_EVERY = 128
"""Rows between two that are looked at for numbers that are not finite; a segment's last one always is."""


def rows_looked_at(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Segment and rows of a step's streams that are looked at for NaN and infinities.

    `counts`: tokens of each segment. A token alone is not looked at: what is chosen after it is.
    """
    end = 0
    for number, count in enumerate(counts):
        end += count
        if count > 1:
            yield number, slice(end - 1 - (count - 1) // LOOK_EVERY * LOOK_EVERY, end, LOOK_EVERY)
