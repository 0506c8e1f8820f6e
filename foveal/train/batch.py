"""What a step computes on: rows of documents with their targets, and how the rows are filled.

A row is a function of (seed, step, row number) and of nothing else, so any process can make any row, and resuming needs
no saved data state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.config import HCA_RATIO
from foveal.ops import Packing
from foveal.train.data import DataError, Sample
from foveal.train.packing import Jump, pack

_ALIGN = HCA_RATIO
"""Offsets and jumps are multiples of this: windows of every ratio begin there."""
_DOCUMENTS = 1 << 12
"""More documents than a row ever holds: row r's documents are numbered from r times this."""


@dataclass(frozen=True)
class PositionConfig:
    """Where documents stand. `offset`: a document begins at a random position up to this. `jump_share`: chance that
    positions leap ahead somewhere inside a document, by up to `jump` (log-uniform), as if so much text were left out:
    rotary angles of far distances are seen with short sequences."""

    offset: int = 0
    jump_share: float = 0.0
    jump: int = 1 << 20

    def __post_init__(self) -> None:
        if self.offset < 0 or self.jump < 0 or not 0 <= self.jump_share <= 1:
            raise DataError("positions.offset and positions.jump must be 0 or more, positions.jump_share from 0 to 1")


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens. `tokens`, `targets` (the next tokens) int64, `weights` fp32 and `asked` bool (tokens that a
    task or recall asks for), all [B, T], the last three of the targets; and which documents the rows hold."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    asked: Tensor
    packing: Packing

    @property
    def following(self) -> Tensor:
        """The tokens that come next as they are shown [B, T]: what an MTP block is given."""
        shown = torch.cat([self.tokens[:, 1:], self.targets[:, -1:]], dim=1)
        return torch.where(self._goes_on, shown, self.targets)

    @property
    def mtp_targets(self) -> Tensor:
        """The tokens after the next ones [B, T]; where there is none, anything."""
        return F.pad(self.targets[:, 1:], (0, 1))

    @property
    def mtp_weights(self) -> Tensor:
        """Their weights [B, T]; 0 where the document ends before."""
        return F.pad(self.weights[:, 1:], (0, 1)) * self._goes_on

    @property
    def _goes_on(self) -> Tensor:
        document = self.packing.document
        return F.pad(document[:, 1:] == document[:, :-1], (0, 1), value=False)

    def some(self, rows: slice) -> Batch:
        """Some of the rows."""
        return Batch(
            self.tokens[rows], self.targets[rows], self.weights[rows], self.asked[rows], self.packing.some(rows)
        )

    def to(self, device: torch.device, ratios: Sequence[int]) -> Batch:
        """The same on `device`, ready for a network with layers of the given compress ratios."""
        tokens, targets, weights, asked = (
            t.to(device, non_blocking=True) for t in (self.tokens, self.targets, self.weights, self.asked)
        )
        return Batch(tokens, targets, weights, asked, self.packing.to(device, ratios))


class DocumentSource(Protocol):
    """What makes documents: `foveal.train.data.Composer`, or a mix with `foveal.train.tasks`."""

    def sample(self, step: int, length: int, index: int = 0) -> Sample:
        """Document number `index` of `step`, `length` tokens long."""
        ...


@dataclass(frozen=True)
class Row:
    """One row in the making: its documents, the position of each one's first token, and the jumps inside it."""

    samples: tuple[Sample, ...]
    offsets: tuple[int, ...]
    jumps: tuple[tuple[Jump, ...], ...]


class Feed:
    """Fills rows with documents from a source."""

    def __init__(self, source: DocumentSource, positions: PositionConfig | None = None, *, seed: int = 0) -> None:
        self.source, self.positions, self.seed = source, positions or PositionConfig(), seed

    def batch(self, step: int, rows: Sequence[int], length: int, documents: tuple[int, int] | None = None) -> Batch:
        """The rows numbered `rows` of `step`, `length` tokens each. With `documents` a row holds documents of random
        lengths in that (inclusive) range, the last one cut off; else one."""
        return assembled([self.row(step, row, length, documents) for row in rows])

    def row(self, step: int, row: int, length: int, documents: tuple[int, int] | None = None) -> Row:
        """One row of a batch."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step, row, 1])))
        if documents is None:
            samples = [self.source.sample(step, length, row)]
        else:
            samples = self._several(step, row, length, documents, rng)
        offsets = [int(rng.integers(0, self.positions.offset // _ALIGN + 1)) * _ALIGN for _ in samples]
        return Row(tuple(samples), tuple(offsets), tuple(self._jumps(len(s.tokens), rng) for s in samples))

    def _several(
        self, step: int, row: int, length: int, documents: tuple[int, int], rng: np.random.Generator
    ) -> list[Sample]:
        samples: list[Sample] = []
        room = length
        while room:
            size = int(rng.integers(documents[0], documents[1] + 1))
            sample = self.source.sample(step, size, (row + 1) * _DOCUMENTS + len(samples))
            samples.append(sample if size <= room else _cut(sample, room))
            room -= min(size, room)
        return samples

    def _jumps(self, length: int, rng: np.random.Generator) -> tuple[Jump, ...]:
        places = (length - 1) // _ALIGN
        if not places or rng.random() >= self.positions.jump_share:
            return ()
        by = int(_ALIGN * np.exp(rng.uniform(0, np.log(max(1, self.positions.jump // _ALIGN)))))
        return ((int(rng.integers(1, places + 1)) * _ALIGN, by // _ALIGN * _ALIGN),)


def assembled(rows: Sequence[Row]) -> Batch:
    """Rows of the same length as a batch (its packing without windows)."""
    samples = [sample for row in rows for sample in row.samples]
    lengths = [[len(sample.tokens) for sample in row.samples] for row in rows]
    packing = pack(lengths, [row.offsets for row in rows], [row.jumps for row in rows], ratios=())
    tokens, targets, weights, asked = (
        torch.cat([getattr(sample, name) for sample in samples]).view(len(rows), -1)
        for name in ("tokens", "targets", "weights", "is_recall")
    )
    return Batch(tokens, targets, weights, asked, packing)


def _cut(sample: Sample, length: int) -> Sample:
    parts = {name: getattr(sample, name)[:length] for name in ("tokens", "targets", "weights", "is_recall")}
    return replace(sample, **parts, sections=())
