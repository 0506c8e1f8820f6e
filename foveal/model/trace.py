"""What the network shows of itself while it runs: where attention went, and what training needs to know.

An `Observer` is passed through a forward pass and collects. Without one, nothing is computed for it. The one thing that
it tells the network is which experts to use, when training has chosen them before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import torch
from torch import Tensor

from foveal.cache import contract
from foveal.ops import Mass

LayerTrace: TypeAlias = contract.LayerTrace[Tensor]


def last_trace(
    layer: int, segment: int, ratio: int, positions: Tensor, indices: Tensor | None, mass: Mass
) -> LayerTrace:
    """From an `attend` over tokens at `positions` that traced its last token."""
    position = int(positions[-1])
    entry_mass = mass.entries[-1]
    if indices is None:
        entries = torch.arange(len(entry_mass), device=entry_mass.device)
    else:
        seen = indices[-1] >= 0
        entries, entry_mass = indices[-1][seen], entry_mass[seen]
    return LayerTrace(layer, segment, ratio, entries, entry_mass, mass.window[-1][-(position + 1) :])


@dataclass(frozen=True)
class IndexLoss:
    """KL divergence of one CSA layer's index scores from where its attention went (DeepSeek-V3.2 report, DSA loss)."""

    value: Tensor

    @classmethod
    def of(cls, scores: Tensor, mass: Tensor, visible: Tensor, indices: Tensor | None) -> Self:
        """scores [n, s] differentiable; mass [n, s] (or [n, k] on `indices`) is the target, L1-normalised; tokens that
        see no entry do not count. With indices the divergence is over the selected set."""
        mass = mass.detach()
        if indices is None:
            scores, mass = scores[:, : mass.shape[1]], mass
            hidden = torch.arange(mass.shape[1], device=scores.device) >= visible.unsqueeze(1)
        else:
            hidden = indices < 0
            scores = scores.gather(1, indices.clamp(min=0))
        some = visible > 0
        if not bool(some.any()):
            return cls(scores.new_zeros(()))
        scores, mass, hidden = scores[some], mass[some], hidden[some]
        return cls(_divergence(scores, mass, hidden).mean())


def index_divergence(scores: Tensor, mass: Tensor, allowed: Tensor) -> Tensor:
    """`IndexLoss` for rows: scores (differentiable), mass and `allowed` (bool) [B, T, E] -> the mean divergence.

    The mean is over all B * T tokens (0 for those that may not look at any entry), so that equal shares of a batch add
    up to the whole.
    """
    if not allowed.shape[-1]:
        return scores.sum() * 0.0
    some = allowed.any(-1)
    # A token without entries would make a softmax of nothing: it is given all of them, and does not count.
    return (_divergence(scores, mass.detach(), ~(allowed | ~some.unsqueeze(-1))) * some).mean()


def _divergence(scores: Tensor, mass: Tensor, hidden: Tensor) -> Tensor:
    """KL(mass, L1-normalised || softmax of the scores) over what is not hidden: [..., s] each -> [...]."""
    target = mass / mass.sum(-1, keepdim=True).clamp(min=1e-9)
    log_index = torch.log_softmax(scores.masked_fill(hidden, float("-inf")), dim=-1).masked_fill(hidden, 0.0)
    return (torch.special.xlogy(target, target) - target * log_index).sum(-1)


@dataclass
class RouterLoad:
    """How one MoE layer spread its tokens: `affinity` [n, E] differentiable, `chosen` [n, A]; `own` [n, A] is what the
    router would have chosen where it was told what to choose, else None."""

    layer: int
    affinity: Tensor
    chosen: Tensor
    own: Tensor | None = None


@dataclass
class Observer(contract.Observer[Tensor]):
    """Collects from a forward pass: traces of last tokens, or, with `index_loss`, what training needs.

    `experts` tells layers (by number, MTP blocks after the last) which experts [n, A] int64 their tokens go to, in
    place of their routers' choice; the weights are the routers' own all the same. Hash-routed layers are not told."""

    index_loss: bool = False
    losses: list[IndexLoss] = field(default_factory=list)
    loads: list[RouterLoad] = field(default_factory=list)
    experts: Mapping[int, Tensor] = field(default_factory=dict)

    def rows(self, count: int, *, indexed: bool) -> int:
        """Tokens of a segment of `count` that `attend` traces in a layer with or without an indexer: all for the
        indexer's loss, else the last."""
        if self.index_loss:
            return count if indexed else 0
        return 1
