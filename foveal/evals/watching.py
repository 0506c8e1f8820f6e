"""The network with its indexers watched: what CSA layers looked at, and what they would have looked at.

See `foveal.evals.tasks.indexer`. It needs torch: the network's modules run on the native operations, one call each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from foveal.backends.reference import ReferenceRunner
from foveal.backends.reference import native_ops as cpu
from foveal.cache import Segment
from foveal.checkpoint import open_checkpoint
from foveal.config import LayerKind, ModelConfig, Numerics
from foveal.engine import model_folder
from foveal.evals.sizes import SIZES
from foveal.evals.task import Metrics
from foveal.memory import Memory
from foveal.model import load_transformer
from foveal.ops import AttendInput, Mass, Operations


@dataclass(frozen=True)
class Seen:
    """One CSA layer: for each watched row the mass on all entries, heads summed, and how much of it the chosen ones
    have, with the model's own top-k and with other sizes."""

    layer: int
    total: Tensor
    inside: Tensor
    at: dict[int, Tensor]


class WatchedNetwork:
    """A model whose CSA layers tell what they would have looked at."""

    def __init__(self, model: str) -> None:
        """Raises what opening the model raises."""
        checkpoint = open_checkpoint(model_folder(model))
        self.config = checkpoint.config
        self._watch = _Watch(self.config)
        # The indexer is asked only when there are more entries than top-k: with 1 it always is, and the watch then
        # answers with the real number.
        always = self.config.replace(index_topk=1)
        ops = cast(Operations, self._watch)
        network = load_transformer(always, checkpoint.weights, ops=ops, numerics=Numerics())
        self._runner = ReferenceRunner(network)

    def run(self, memory: Memory, tokens: Sequence[int], rows: int) -> list[Seen]:
        """Run `tokens` behind `memory`, which does not change; what its CSA layers saw at the last `rows` tokens."""
        self._watch.begin(rows)
        sequence = memory.sequence.fork()
        try:
            self._runner(np.array(tokens, dtype=np.int64), [Segment(sequence, len(tokens))])
        finally:
            sequence.free()
        return self._watch.seen


class _Watch:
    """The native operations, of which `index_topk` and `attend` are watched."""

    def __init__(self, config: ModelConfig) -> None:
        self._topk = config.index_topk
        self._layers = [n for n in range(config.num_hidden_layers) if config.kind(n) is LayerKind.CSA]
        self.begin(0)

    def begin(self, rows: int) -> None:
        self._rows = rows
        self._chosen: dict[int, Tensor] = {}
        self.seen: list[Seen] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(cpu, name)

    def index_topk(self, query: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
        few = slice(len(query) - self._rows, None)
        for size in SIZES:
            if size < len(keys):
                found = cpu.index_topk(query[few].contiguous(), weights[few].contiguous(), keys, visible[few], size)
                self._chosen[size] = found
        chosen = cpu.index_topk(query, weights, keys, visible, self._topk)
        self._chosen[0] = chosen[few]
        return chosen

    def attend(self, x: AttendInput, *, trace: int = 0) -> tuple[Tensor, Mass | None]:
        if x.indices is not None:
            chosen, self._chosen = self._chosen, {}
            _, mass = cpu.attend(dataclasses.replace(x, indices=None), trace=self._rows)
            assert mass is not None
            visible = (x.positions[-self._rows :] + 1) // x.ratio
            hidden = torch.arange(mass.entries.shape[1]) >= visible.unsqueeze(1)
            entries = mass.entries.double().masked_fill(hidden, 0.0)
            inside = {size: _inside(entries, indices) for size, indices in chosen.items()}
            layer = self._layers[len(self.seen)]
            self.seen.append(Seen(layer, entries.sum(1), inside.pop(0), inside))
        return cpu.attend(x, trace=trace)


def _inside(entries: Tensor, indices: Tensor) -> Tensor:
    """Of the mass [rows, s], the sum over the chosen entries [rows, k] (-1: none)."""
    return (entries.gather(1, indices.clamp(min=0)) * (indices >= 0)).sum(1)


def metrics_of(seen: Sequence[Seen], config: ModelConfig) -> Metrics:
    """What `foveal.evals.tasks.indexer` tells of it."""
    metrics: Metrics = {"mass_in_topk": fmean(_share(each.inside, each.total) for each in seen)}
    total = sum(float(each.total.sum()) for each in seen)
    metrics["mass_in_topk_pooled"] = sum(float(each.inside.sum()) for each in seen) / total
    for each in seen:
        metrics[f"mass_in_topk_layer_{each.layer}"] = _share(each.inside, each.total)
    for size in SIZES:
        if all(size in each.at for each in seen):
            metrics[f"mass_in_top_{size}"] = fmean(_share(each.at[size], each.total) for each in seen)
    metrics["entry_mass"] = total / sum(len(each.total) for each in seen)
    return metrics


def _share(inside: Tensor, total: Tensor) -> float:
    """Mean over the rows, rows that look at no entry left out."""
    some = total > 0
    return min(1.0, float((inside[some] / total[some]).mean())) if bool(some.any()) else 1.0
