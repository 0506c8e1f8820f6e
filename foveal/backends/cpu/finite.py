"""Hidden states that are not finite: noticed in a few rows of every pass, and then traced to where they begin.

A NaN in a layer's window or entries reaches every later token that attends to it, so the last row of a window of tokens
tells of the whole. To look at all rows would cost what a layer's norm costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveal import _native
from foveal.backends.cpu.layers import rows_of, without_experts
from foveal.backends.cpu.live import LiveKeeper
from foveal.cache import CacheFormat, CacheLayout, PagePool
from foveal.cache import Sequence as CachedSequence
from foveal.cache.contract import rows_looked_at
from foveal.config import ModelConfig, Numerics
from foveal.formats import F32, I64, Array, Weight

_TRACED = 512


def bad_segment(streams: Array, counts: Sequence[int]) -> int | None:
    """The first segment whose streams [n, S, d] hold NaN or an infinity in the rows that are looked at, or None.

    `counts`: tokens of each segment.
    """
    return next((number for number, rows in rows_looked_at(counts) if not np.isfinite(streams[rows]).all()), None)


@dataclass(frozen=True)
class Origin:
    """Finds where a network's states go wrong first: its layers one more at a time, without the last one's experts, and
    with them."""

    config: ModelConfig
    numerics: Numerics
    runtime: _native.Runtime
    shape: dict[str, Any]
    layers: Sequence[dict[str, Any]]
    ends: dict[str, Any]
    embedding: Weight

    def first_place(self, tokens: Array) -> str:
        """Where the last of `tokens` alone, without a past, go wrong first."""
        tokens = np.ascontiguousarray(tokens[-_TRACED:], dtype=I64)
        if not np.isfinite(rows_of(self.embedding, tokens)).all():
            return "the embedding"
        for number, values in enumerate(self.layers):
            before = self.layers[:number]
            if not self._finite([*before, without_experts(self.config, values)], tokens):
                return f"the attention of layer {number}"
            if not self._finite([*before, values], tokens):
                return f"the experts of layer {number}"
        return "some layer"

    def _finite(self, layers: Sequence[dict[str, Any]], tokens: Array) -> bool:
        network = _native.Network(self.runtime, self.shape)
        for values in layers:
            network.add_layer(values)
        network.set_ends(self.ends)
        streams = np.empty((len(tokens), self.config.hc_mult, self.config.hidden_size), dtype=F32)
        pool = PagePool(CacheLayout(self._config(len(layers)), CacheFormat()))
        with CachedSequence(pool) as sequence:
            live = sequence.begin_work(len(tokens), LiveKeeper(self.runtime, fp4_keys=self.numerics.index))
            network.step(tokens, [(live.native, len(tokens), False)], streams)  # type: ignore[attr-defined]
            return bool(np.isfinite(streams).all())

    def _config(self, layers: int) -> ModelConfig:
        return self.config.replace(
            num_hidden_layers=layers,
            compress_ratios=self.config.compress_ratios[:layers],
            num_nextn_predict_layers=0,
            num_hash_layers=min(layers, self.config.num_hash_layers),
        )
