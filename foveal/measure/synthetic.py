"""A past that nobody read: a sequence filled with made-up entries, so that depth can be measured at once.

What is special here: the entries go the way real ones go, through `Sequence.append` and `advance`, so whatever a page
holds is there and every page is memory of its own. They look like real ones to the kernels: unit RMS, on the FP8 and
FP4 grids that the official code rounds to, no two of them equal (so scores do not tie). Being random, they are the
worst case for anything that skips entries by bounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foveal.cache import Sequence
from foveal.config import PAGE_TOKENS
from foveal.model.state import LayerUpdate, OpenRows, Part, entry_width, open_row_count, parts_of, row_width
from foveal.ops import reference

STEP_TOKENS = 16 * PAGE_TOKENS
"""Tokens filled in at a time: what is made on the way stays small beside the cache."""


class _Source:
    """Random rows. A bank of them is made once; each step reads it under signs of its own for every channel, which
    keeps RMS and number format and makes all rows different."""

    def __init__(self, sequence: Sequence, seed: int) -> None:
        self.config = sequence.config
        self.generator = torch.Generator().manual_seed(seed)
        rotary = self.config.qk_rope_head_dim
        kv = self._normal(STEP_TOKENS, entry_width(self.config, Part.MAIN))
        keys = self._normal(STEP_TOKENS, entry_width(self.config, Part.INDEX))
        self._banks = {Part.MAIN: reference.quantize_kv(kv, rotary), Part.INDEX: reference.quantize_index(keys)}

    def _normal(self, rows: int, width: int) -> Tensor:
        made = torch.randn(rows, width, generator=self.generator)
        return made / made.square().mean(-1, keepdim=True).sqrt()

    def rows(self, part: Part, count: int) -> Tensor:
        """`count` rows (at most `STEP_TOKENS`) of a part's width, fp32."""
        bank = self._banks[part]
        signs = torch.randint(0, 2, (bank.shape[1],), generator=self.generator) * 2 - 1
        return bank[:count] * signs

    def update(self, layer: int, old: int, new: int) -> LayerUpdate:
        """What tokens `old` to `new` leave in `layer`."""
        opened, entries = {}, {}
        for part in parts_of(self.config, layer):
            ratio = self.config.compress_ratios[layer]
            shape = (open_row_count(ratio, new), row_width(self.config, layer, part))
            opened[part] = OpenRows(self._normal(*shape), self._normal(*shape))
            entries[part] = self.rows(
                part, self.config.entries_after(new, layer) - self.config.entries_after(old, layer)
            )
        return LayerUpdate(self.rows(Part.MAIN, new - old), opened, entries)

    def tokens(self, count: int) -> Tensor:
        """Random token ids [count]."""
        return torch.randint(0, self.config.vocab_size, (count,), generator=self.generator)


@torch.no_grad()
def fill(sequence: Sequence, length: int, *, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> None:
    """Make `sequence` `length` tokens long with random tokens, entries, window and open rows.

    The same seed gives the same past. Raises `ValueError` when it is longer already.
    """
    if sequence.length > length:
        raise ValueError(f"the sequence has {sequence.length} tokens already; it cannot be filled up to {length}")
    source = _Source(sequence, seed)
    while sequence.length < length:
        old = sequence.length
        new = min(length, old + STEP_TOKENS)
        for layer in range(sequence.config.num_hidden_layers):
            sequence.append(layer, source.update(layer, old, new))
        sequence.advance(source.tokens(new - old))
        if progress is not None:
            progress(new, length)
