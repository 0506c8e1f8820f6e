"""How near a converted model is to its source, on text that nothing was fitted to.

Both read the same rows, each a document from its beginning, and are compared at every place: the mean divergence
KL(source || converted) of the next token, how often both find the same token likeliest, and nats on the text itself.
The converted model runs on the reference operations with the run-time quantisation of the official code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from foveal.config import ModelConfig, Numerics
from foveal.convert.llama import Llama
from foveal.formats import Weight
from foveal.model import PlainState, Segment, load_transformer

EDGES = (0, 32, 64, 96, 128, 256, 512, 1024, 2048)
"""Places of a row where a bin of the table by position begins."""


@dataclass(frozen=True)
class Bin:
    """Means over the places `first` to `last` (inclusive) of all rows."""

    first: int
    last: int
    kl: float
    top1: float
    source_nats: float
    nats: float


@dataclass(frozen=True)
class Comparison:
    """Means over all places of `rows` rows of `length` tokens, and by position."""

    rows: int
    length: int
    kl: float
    top1: float
    source_nats: float
    nats: float
    by_position: tuple[Bin, ...]


@dataclass(frozen=True)
class _Places:
    """One number for each place of the rows: [n, T - 1]."""

    kl: Tensor
    same: Tensor
    source_nats: Tensor
    nats: Tensor

    def means(self, first: int, end: int) -> tuple[float, float, float, float]:
        parts = (self.kl, self.same, self.source_nats, self.nats)
        kl, same, source_nats, nats = (float(part[:, first:end].mean()) for part in parts)
        return kl, same, source_nats, nats


def compare(
    source: Llama,
    config: ModelConfig,
    weights: Mapping[str, Weight],
    rows: Tensor,
    *,
    numerics: Numerics | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """The model of `config` and `weights` against `source` on `rows` [n, T] of tokens. `progress(done, total)`."""
    model = load_transformer(config, weights, dtype=torch.float32, numerics=numerics)
    found: list[_Places] = []
    for number, row in enumerate(rows):
        with torch.inference_mode():
            streams = model(row, [Segment(PlainState(config), len(row))])
            found.append(_places(source.logits(row[None])[0], model.logits(streams), row))
        if progress is not None:
            progress(number + 1, len(rows))
    return _summary(found, rows.shape[1])


def _places(theirs: Tensor, ours: Tensor, row: Tensor) -> _Places:
    theirs, ours = theirs[:-1].log_softmax(-1), ours[:-1].log_softmax(-1)
    following = row[1:, None]
    return _Places(
        (theirs.exp() * (theirs - ours)).sum(-1),
        (theirs.argmax(-1) == ours.argmax(-1)).float(),
        -theirs.gather(1, following)[:, 0],
        -ours.gather(1, following)[:, 0],
    )


def _summary(found: Sequence[_Places], length: int) -> Comparison:
    names = ("kl", "same", "source_nats", "nats")
    all_places = _Places(*(torch.stack([getattr(one, name) for one in found]) for name in names))
    edges = [*(edge for edge in EDGES if edge < length - 1), length - 1]
    bins = [Bin(a, b - 1, *all_places.means(a, b)) for a, b in pairwise(edges)]
    return Comparison(len(found), length, *all_places.means(0, length - 1), tuple(bins))
