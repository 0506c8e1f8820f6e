"""Some of a network's layers: streams in, streams out, pages of its own.

A stage is nothing new to the cache and to the store. Its sequences lie in pages of a layout of its layers
(`CacheLayout(layers=...)`), and its arithmetic says which layers these are, so that the names of its pages are its own.
The first stage embeds the tokens, and whoever has the last one's streams asks `logits` of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.backends.reference.runner import on_tensors
from foveal.cache.contract import Segment
from foveal.config import PAGE_TOKENS, ModelConfig
from foveal.errors import NotFiniteError
from foveal.formats import Array
from foveal.formats.tensors import to_array, to_tensor
from foveal.model.finite import bad_segment
from foveal.model.transformer import Transformer


class Stage:
    """The layers `layers` of `model`. Raises `ValueError` when the model has no such range."""

    memory = None
    keeper = None
    grain = PAGE_TOKENS

    def __init__(self, model: Transformer, layers: range) -> None:
        if not (0 <= layers.start < layers.stop <= model.config.num_hidden_layers and layers.step == 1):
            raise ValueError(f"{layers} is no range of the model's {model.config.num_hidden_layers} layers")
        self.model, self.layers = model, layers

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def arithmetic(self) -> str:
        """See `foveal.backends.Runner`."""
        stage = f"layers {self.layers.start} to {self.layers.stop - 1}"
        return f"fp32 activations, simulating {self.model.numerics}, {stage}"

    @torch.no_grad()
    def embed(self, tokens: Array) -> Array:
        """Tokens, int64 [n] -> the streams before the first layer, fp32 [n, S, d]."""
        embedded = self.model.embedded(to_tensor(tokens))
        return to_array(embedded.unsqueeze(1).repeat(1, self.config.hc_mult, 1))

    @torch.no_grad()
    def __call__(self, streams: Array, tokens: Array, segments: Sequence[Segment[Array]]) -> Array:
        """Streams [n, S, d] before the stage -> after it; the states of the segments, in pages of this stage, advance.

        Raises `ValueError`, `CacheFull` and `NotFiniteError` as a `Runner` does.
        """
        ids, counts, past = to_tensor(tokens), [segment.count for segment in segments], on_tensors(segments)
        if sum(counts) != len(ids):
            raise ValueError(f"{len(ids)} tokens for segments of {counts}; they must add up")
        positions = torch.cat([torch.arange(s.state.length, s.state.length + s.count) for s in past])
        after = to_tensor(streams)
        for layer in self.layers:
            after = self.model.layers[layer](after, ids, positions, past, None)
        if bad_segment(after, counts) is not None:
            raise NotFiniteError(f"one of the layers {self.layers.start} to {self.layers.stop - 1}")
        self._advance(past, ids.split(counts))
        return to_array(after)

    def _advance(self, past: Sequence[Segment[Tensor]], tokens: Sequence[Tensor]) -> None:
        for segment, own in zip(past, tokens, strict=True):
            segment.state.advance(own)

    @torch.no_grad()
    def logits(self, streams: Array) -> Array:
        """Streams [m, S, d] after the last layer -> logits [m, V] fp32."""
        return to_array(self.model.logits(to_tensor(streams)))
