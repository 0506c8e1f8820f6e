"""Which of a source's heads look things up: those that, in a passage that is repeated, see where it stood before.

A head's score is the attention that it pays, on average, to the earlier token and to the one after it, at places of
the second copy. Few heads have nearly all of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.convert.layout import RAW_WINDOW
from foveal.convert.llama import Llama, Part, turned
from foveal.train.distill.rows import RowMaker

_ROWS = 6


def find_heads(network: Llama, maker: RowMaker, count: int, most: int) -> dict[int, tuple[int, ...]]:
    """The `count` heads with the highest scores, at most `most` of a layer: layer -> heads."""
    scores = head_scores(network, maker)
    heads: dict[int, tuple[int, ...]] = {}
    for index in scores.flatten().argsort(descending=True).tolist():
        layer, head = divmod(index, scores.shape[1])
        if sum(map(len, heads.values())) == count:
            break
        if len(heads.get(layer, ())) < most:
            heads[layer] = (*heads.get(layer, ()), head)
    return dict(sorted(heads.items()))


def head_scores(network: Llama, maker: RowMaker) -> Tensor:
    """[layers, heads]: means over the places of some repeats that stood beyond the raw window."""
    s = network.shape
    scores = torch.zeros(s.layers, s.heads)
    for number in range(_ROWS):
        tokens, places, earlier = maker.repeat_at(number)
        far = places - earlier > RAW_WINDOW
        device = network.embed.device
        asking, found = places[far].to(device), earlier[far].to(device)
        if not len(asking):
            continue

        def hook(part: Part, layer: int, x: Tensor, asking: Tensor = asking, found: Tensor = found) -> None:
            if part == "attention":
                scores[layer] += _seen(network, layer, x[0], asking, found).cpu() / _ROWS

        network.hidden(tokens[None].to(device), hook)
    return scores


def _seen(network: Llama, layer: int, x: Tensor, asking: Tensor, found: Tensor) -> Tensor:
    """The mean attention [H] of places `asking` [A] to tokens `found` [A] and those after them."""
    s, own = network.shape, network.layers[layer]
    angles = torch.arange(len(x), device=x.device, dtype=torch.float32)[:, None] * network.frequencies
    query = F.linear(x[asking].to(network.dtype), own.q).float().unflatten(-1, (s.heads, -1)).transpose(0, 1)
    key = F.linear(x.to(network.dtype), own.k).float().unflatten(-1, (s.groups, -1)).transpose(0, 1)
    query, key = turned(query, angles[asking]), turned(key, angles).repeat_interleave(s.heads_per_group, 0)
    logits = query @ key.transpose(1, 2) * s.head_dim**-0.5
    later = torch.arange(len(x), device=x.device) > asking[:, None]
    weights = logits.masked_fill(later, -torch.inf).softmax(-1)  # [H, A, T]
    place = torch.arange(len(asking), device=x.device)
    return (weights[:, place, found] + weights[:, place, found + 1]).mean(1)
