"""What a sequence remembers between steps, as the network sees it.

What is special here: the network never owns memory. It asks a `SequenceState` for what the past left behind and hands
back what the new tokens leave; everything else follows from the absolute position (docs/design.md). Two classes
speak this protocol: `PlainState` below, the definition (plain tensors, differentiable, used by training and as the
oracle of the cache's tests), and `foveal.cache.Sequence`, pages and tail.

The order of calls in one step is fixed: for every layer `window`, `open_rows`, `append`, `entries`; then `advance`
once. `entries` after `append` already shows the new entries; `length` moves only with `advance`.

Shape legend: t = tokens so far, n = new tokens, W = sliding_window, c = head_dim, w = width of a compressor's rows,
e = entry width (head_dim, or index_head_dim).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from foveal.config import CSA_RATIO, HCA_RATIO, LayerKind, ModelConfig


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
class OpenRows:
    """A compressor's unfinished input: the rows of the last `open_row_count` tokens, oldest first, fp32.

    `kv` and `gate` are [rows, w]; `gate` already contains the position bias `ape`.
    """

    kv: Tensor
    gate: Tensor


@dataclass(frozen=True)
class LayerUpdate:
    """What n new tokens leave in one layer: `window` [n, c] raw KV rows, and for each compressor the rows that stay
    open after them and the new entries [m, e] they completed."""

    window: Tensor
    open_rows: dict[Part, OpenRows] = field(default_factory=dict)
    entries: dict[Part, Tensor] = field(default_factory=dict)


class SequenceState(Protocol):
    """The past of one sequence, as the network needs it."""

    @property
    def length(self) -> int:
        """Tokens so far, t."""
        ...

    def window(self, layer: int) -> Tensor:
        """Raw KV rows [min(t, W - 1), c] of the last positions before t, oldest first."""
        ...

    def open_rows(self, layer: int, part: Part) -> OpenRows:
        """The compressor's open rows at t: ``open_row_count(ratio, t)`` of them."""
        ...

    def append(self, layer: int, update: LayerUpdate) -> None:
        """Take what the new tokens leave in `layer`. Called once a step for every layer, in order."""
        ...

    def entries(self, layer: int, part: Part) -> Tensor:
        """All entries [s, e] of `layer`, the ones just appended included, in the order of their windows."""
        ...

    def advance(self, tokens: Tensor) -> None:
        """End the step: the n `tokens` (int64) are now part of the past."""
        ...


class PlainState:
    """The definition: every entry and every window row in plain tensors, gradients included. Nothing is shared.

    Also holds MTP blocks' windows when the network runs them: layer indices are those of `compress_ratios`.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.tokens = torch.empty(0, dtype=torch.int64)
        count = len(config.compress_ratios)
        self._window = [torch.empty(0, config.head_dim, dtype=dtype) for _ in range(count)]
        self._rows: dict[tuple[int, Part], OpenRows] = {}
        self._entries: dict[tuple[int, Part], Tensor] = {}
        for layer in range(count):
            for part in parts_of(config, layer):
                empty = torch.empty(0, row_width(config, layer, part))
                self._rows[layer, part] = OpenRows(empty, empty)
                self._entries[layer, part] = torch.empty(0, entry_width(config, part), dtype=dtype)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def window(self, layer: int) -> Tensor:
        return self._window[layer]

    def open_rows(self, layer: int, part: Part) -> OpenRows:
        return self._rows[layer, part]

    def append(self, layer: int, update: LayerUpdate) -> None:
        keep = self.config.sliding_window - 1
        rows = torch.cat([self._window[layer].to(update.window.dtype), update.window])
        self._window[layer] = rows[max(0, len(rows) - keep) :]
        for part, open_rows in update.open_rows.items():
            self._rows[layer, part] = open_rows
            old = self._entries[layer, part]
            self._entries[layer, part] = torch.cat([old.to(update.entries[part].dtype), update.entries[part]])

    def entries(self, layer: int, part: Part) -> Tensor:
        return self._entries[layer, part]

    def advance(self, tokens: Tensor) -> None:
        self.tokens = torch.cat([self.tokens, tokens.to(self.tokens.dtype)])


__all__ = [
    "CSA_RATIO",
    "HCA_RATIO",
    "LayerUpdate",
    "OpenRows",
    "Part",
    "PlainState",
    "SequenceState",
    "entry_width",
    "open_row_count",
    "parts_of",
    "row_width",
]
