"""A `Transformer` as a runner: arrays in, arrays out, tensors between.

Nothing is copied on the way but what is BF16 on one side and not on the other. The last bits of a product depend on how
many rows it has, so a prompt is cut where a stored one may end, at pages, and every sequence runs in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.cache import contract
from foveal.cache.contract import Part
from foveal.config import PAGE_TOKENS, ModelConfig
from foveal.formats import Array
from foveal.formats.tensors import to_array, to_tensor
from foveal.model.state import LayerUpdate, OpenRows, Segment
from foveal.model.trace import Observer
from foveal.model.transformer import Transformer


class OnTensors:
    """A state on arrays (`foveal.cache.Sequence`) as the network takes it, on tensors."""

    def __init__(self, state: contract.SequenceState[Array]) -> None:
        self.state = state

    @property
    def length(self) -> int:
        return self.state.length

    def window(self, layer: int) -> Tensor:
        return to_tensor(self.state.window(layer))

    def open_rows(self, layer: int, part: Part) -> OpenRows:
        rows = self.state.open_rows(layer, part)
        return OpenRows(to_tensor(rows.kv), to_tensor(rows.gate))

    def append(self, layer: int, update: LayerUpdate) -> None:
        rows = {part: contract.OpenRows(to_array(r.kv), to_array(r.gate)) for part, r in update.open_rows.items()}
        entries = {part: to_array(new) for part, new in update.entries.items()}
        self.state.append(layer, contract.LayerUpdate(to_array(update.window), rows, entries))

    def entries(self, layer: int, part: Part) -> Tensor:
        return to_tensor(self.state.entries(layer, part))

    def advance(self, tokens: Tensor) -> None:
        self.state.advance(to_array(tokens))


def on_tensors(segments: Sequence[contract.Segment[Array]]) -> list[Segment]:
    """The segments as the network takes them. Raises `ValueError` when two of them are of one sequence."""
    if len({id(segment.state) for segment in segments}) != len(segments):
        raise ValueError("the same sequence stands in two segments of one batch")
    return [Segment(OnTensors(segment.state), segment.count) for segment in segments]


class ReferenceRunner:
    """`model` as a `foveal.backends.Runner`. Streams are tensors."""

    memory = None
    keeper = None
    grain = PAGE_TOKENS

    def __init__(self, model: Transformer) -> None:
        self.model = model

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def arithmetic(self) -> str:
        """See `foveal.backends.Runner`."""
        return f"fp32 activations, simulating {self.model.numerics}"

    @torch.no_grad()
    def __call__(
        self,
        tokens: Array,
        segments: Sequence[contract.Segment[Array]],
        observer: contract.Observer[Array] | None = None,
    ) -> Tensor:
        """See `foveal.backends.Runner`."""
        seen = Observer() if observer is not None else None
        streams: Tensor = self.model(to_tensor(tokens), on_tensors(segments), seen)
        if observer is not None and seen is not None:
            observer.traces += map(_on_arrays, seen.traces)
        return streams

    @torch.no_grad()
    def logits(self, streams: Tensor) -> Array:
        """Streams [m, S, d] -> logits [m, V] fp32."""
        return to_array(self.model.logits(streams))


def _on_arrays(trace: contract.LayerTrace[Tensor]) -> contract.LayerTrace[Array]:
    entries, entry_mass, window_mass = map(to_array, (trace.entries, trace.entry_mass, trace.window_mass))
    return contract.LayerTrace(trace.layer, trace.segment, trace.ratio, entries, entry_mass, window_mass)
