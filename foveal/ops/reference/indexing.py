"""The lightning indexer (report section 2.3.2): which entries a token looks at."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 64
"""Tokens scored at a time: bounds the [rows, heads, entries] intermediate."""


def index_scores(query: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """score[n, s] = sum over heads of weight[n, h] * relu(query[n, h] . keys[s])."""
    products = torch.relu(torch.einsum("nhc,sc->nhs", query, keys))
    return torch.einsum("nh,nhs->ns", weights, products)


def index_topk(query: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
    """The k best of the first visible[i] keys, ascending by index, padded with -1; ties take the lowest index."""
    width = min(k, len(keys))
    chosen = [
        _top(index_scores(query[i : i + _ROWS], weights[i : i + _ROWS], keys), visible[i : i + _ROWS], width)
        for i in range(0, len(query), _ROWS)
    ]
    return torch.cat(chosen) if chosen else torch.empty(0, width, dtype=torch.int64, device=query.device)


def _top(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """What is above the k-th score, and as many of its equals, lowest index first, as there is room for."""
    seen = torch.arange(scores.shape[1], device=scores.device) < visible.unsqueeze(1)
    scores = scores.masked_fill(~seen, float("-inf"))
    threshold = scores.topk(k, dim=1).values[:, -1:] if k else scores[:, :0].new_full((len(scores), 1), torch.inf)
    above, equal = scores > threshold, scores == threshold
    room = k - above.sum(1, keepdim=True)
    taken = (above | (equal & (equal.cumsum(1) <= room))) & seen
    rows, columns = taken.nonzero(as_tuple=True)
    result = torch.full((len(scores), k), -1, dtype=torch.int64, device=scores.device)
    result[rows, (taken.cumsum(1) - 1)[rows, columns]] = columns
    return result
