"""The past as torch tensors: the definition of what a sequence remembers (`foveal.cache.contract`), with gradients.

Two classes speak that protocol: `PlainState` below, used by training and as the oracle of the tests, and
`foveal.cache.Sequence` (pages and tail, on numpy arrays), which `foveal.backends.reference` puts before the network.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from foveal.cache import contract
from foveal.cache.contract import Part, entry_width, parts_of, row_width
from foveal.config import ModelConfig

OpenRows: TypeAlias = contract.OpenRows[Tensor]
LayerUpdate: TypeAlias = contract.LayerUpdate[Tensor]
SequenceState: TypeAlias = contract.SequenceState[Tensor]
Segment: TypeAlias = contract.Segment[Tensor]


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
