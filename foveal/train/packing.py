"""Putting documents into rows: lengths, absolute offsets and jumps -> `Packing`.

Positions follow the rules of `foveal.ops.packed` (offsets and jumps are multiples of 128), so that a document has the
same windows wherever it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foveal.config import CSA_RATIO, HCA_RATIO
from foveal.ops import Packing

Jump = tuple[int, int]
"""(place, by): from token `place` of a document on, positions are `by` higher. Both are multiples of 128."""


def pack(
    lengths: Sequence[Sequence[int]],
    offsets: Sequence[Sequence[int]] | None = None,
    jumps: Sequence[Sequence[Sequence[Jump]]] | None = None,
    ratios: Sequence[int] = (CSA_RATIO, HCA_RATIO),
) -> Packing:
    """Rows of documents of the given lengths; each row's lengths have the same sum. `offsets` are the positions of the
    documents' first tokens, `jumps` what is left out inside them. Raises `ValueError` when rows differ in length or a
    place is not a multiple of 128."""
    documents, positions = [], []
    for row, sizes in enumerate(lengths):
        parts = []
        for number, size in enumerate(sizes):
            position = torch.arange(size) + (offsets[row][number] if offsets is not None else 0)
            for place, by in jumps[row][number] if jumps is not None else ():
                position[place:] += by
            parts.append(position)
        positions.append(torch.cat(parts))
        documents.append(torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)))
    if len({len(row) for row in positions}) != 1:
        raise ValueError(f"rows of {sorted({len(row) for row in positions})} tokens; all must have the same length")
    return Packing.of(torch.stack(documents), torch.stack(positions), ratios)
