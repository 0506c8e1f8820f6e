"""Rows of packed documents: what training gives the operations instead of one sequence and its past.

B rows of T tokens hold whole documents back to back. A document sees only itself: no raw window, no compressed window
and no entry reaches across its border, so packed documents compute what each would alone. Every shape depends on B, T
and the ratio only, whatever the documents' lengths are: nothing in a step waits for the data.

Positions are absolute. Within a document they rise by one, or jump ahead at a place that begins a new window of every
ratio (a multiple of 128): then nearer tokens are missing, as in a long text of which only parts are shown, and nothing
is nearer than its position says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from foveal.config import CSA_RATIO, HCA_RATIO
from foveal.ops.interface import Rotation


@dataclass(frozen=True)
class Windows:
    """The complete windows of `ratio` tokens in B rows, at most E = T // ratio of them in a row, in order.

    `start` [B, E] int64: index in the row of a window's first token (0 where there is no window); `exists` [B, E] bool;
    `follows` [B, E] bool: the window before it in the list is its predecessor in the same document, without a jump;
    `position` [B, E] int64: absolute position of its first token; `visible` [B, T, E] bool: which windows' entries a
    token may look at. `regular`: every row is one document, and window e begins at token e * ratio.
    """

    ratio: int
    start: Tensor
    exists: Tensor
    follows: Tensor
    position: Tensor
    visible: Tensor
    regular: bool

    @classmethod
    def of(cls, ratio: int, document: Tensor, position: Tensor, *, regular: bool = False) -> Self:
        """From the `document` and `position` [B, T] of every token; `regular` says that rows are known to be single
        documents (nothing here waits for a GPU to find out)."""
        length = document.shape[1]
        count = length // ratio
        first = position % ratio == 0
        complete = torch.zeros_like(first)
        if count:
            same = document[:, ratio - 1 :] == document[:, : length - ratio + 1]
            unbroken = position[:, ratio - 1 :] - position[:, : length - ratio + 1] == ratio - 1
            complete[:, : length - ratio + 1] = same & unbroken
        begins = first & complete
        order = torch.argsort((~begins).to(torch.int8), dim=1, stable=True)[:, :count]
        exists = begins.gather(1, order)
        start = torch.where(exists, order, 0)
        owner = torch.where(exists, document.gather(1, start), -1)
        at = torch.where(exists, position.gather(1, start), 0)
        follows = torch.zeros_like(exists)
        follows[:, 1:] = exists[:, 1:] & (owner[:, 1:] == owner[:, :-1]) & (at[:, 1:] - at[:, :-1] == ratio)
        last = torch.where(exists, start + ratio - 1, length)
        token = torch.arange(length, device=document.device)
        visible = (document.unsqueeze(2) == owner.unsqueeze(1)) & (last.unsqueeze(1) <= token.view(1, -1, 1))
        return cls(ratio, start, exists, follows, at, visible, regular and length % ratio == 0)


@dataclass(frozen=True)
class Packing:
    """Which document and which absolute position each token of B rows has: [B, T] int64 both, documents ascending from
    0 within a row. `regular`: every row is one document without a jump. `windows`: what follows from them, by ratio."""

    document: Tensor
    position: Tensor
    regular: bool
    windows: dict[int, Windows] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Tensor, position: Tensor, ratios: Sequence[int] = (CSA_RATIO, HCA_RATIO)) -> Self:
        """From documents and positions [B, T], with windows of the given ratios. Raises `ValueError` when they do not
        describe packed documents."""
        _check(document, position)
        regular = bool((document == 0).all()) and bool((position[:, 1:] - position[:, :-1] == 1).all())
        return cls(document, position, regular, _windows(document, position, ratios, regular))

    @classmethod
    def whole(cls, rows: int, length: int, ratios: Sequence[int] = (CSA_RATIO, HCA_RATIO)) -> Self:
        """Every row one document that begins at position 0."""
        position = torch.arange(length).expand(rows, length)
        return cls.of(torch.zeros_like(position), position, ratios)

    @property
    def rows(self) -> int:
        """B."""
        return self.document.shape[0]

    @property
    def length(self) -> int:
        """T, the tokens of a row."""
        return self.document.shape[1]

    def some(self, rows: slice) -> Packing:
        """Some of the rows, without windows."""
        return Packing(self.document[rows], self.position[rows], self.regular)

    def to(self, device: torch.device, ratios: Sequence[int]) -> Packing:
        """The same on `device`, with windows of the given ratios, which are worked out there."""
        document, position = (t.to(device, non_blocking=True) for t in (self.document, self.position))
        return Packing(document, position, self.regular, _windows(document, position, ratios, self.regular))


def _windows(document: Tensor, position: Tensor, ratios: Sequence[int], regular: bool) -> dict[int, Windows]:
    return {r: Windows.of(r, document, position, regular=regular) for r in sorted(set(ratios) - {0})}


def _check(document: Tensor, position: Tensor) -> None:
    if document.shape != position.shape or document.dim() != 2:
        raise ValueError(f"documents {tuple(document.shape)} and positions {tuple(position.shape)} must be [B, T] both")
    same = document[:, 1:] == document[:, :-1]
    step = position[:, 1:] - position[:, :-1]
    if bool((document[:, 1:] < document[:, :-1]).any()):
        raise ValueError("documents must ascend within a row")
    begins = torch.cat([torch.ones_like(same[:, :1]), ~same | (step != 1)], dim=1)
    if bool((same & (step < 1)).any()) or bool((begins & (position % HCA_RATIO != 0)).any()):
        raise ValueError(f"positions must rise by 1 in a document, or jump ahead to a multiple of {HCA_RATIO}")


@dataclass(frozen=True)
class PackedCompressInput:
    """What `Operations.compress_packed` works on: `kv`, `gate` [B, T, width], the position bias in `gate`."""

    kv: Tensor
    gate: Tensor
    windows: Windows
    norm: Tensor
    eps: float
    rotation: Rotation


@dataclass(frozen=True)
class PackedAttendInput:
    """What `Operations.attend_packed` works on: `query` [B, T, H, c] rotated, `kv` [B, T, c], `entries` [B, E, c] (None
    in window-only layers), `allowed` [B, T, E] bool: the entries each token looks at, visible ones only; `sink` [H]."""

    query: Tensor
    kv: Tensor
    packing: Packing
    window_size: int
    entries: Tensor | None
    allowed: Tensor | None
    ratio: int
    sink: Tensor
    rotation: Rotation
