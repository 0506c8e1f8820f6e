"""Which of a source's heads look things up: those whose sight of what lies beyond the raw window is worth most nats.

What a head finds beyond the window is scaled by a mask, from 0 (it sees the window and the first token) to 1 (it sees
everything). The gradient of the loss by the mask, integrated from 0 to 1 for all heads at once (integrated gradients,
arXiv 1703.01365), shares out what sight beyond the window is worth among the heads. Few heads have nearly all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveal.convert.layout import RAW_WINDOW
from foveal.convert.llama import Llama, normed
from foveal.train.distill.rows import Row, RowMaker

_MASKS = (1 / 6, 3 / 6, 5 / 6)
"""Where the integral is taken: the middles of three equal parts."""
_LEAST = 1e-6
"""Nats: where sight beyond the window saves less, there is nothing to share out."""
_ROWS = 4
"""Of each kind."""
_TRIED = 40
"""Rows that are made for each that is read, at most."""
_KINDS = ("repeat", "list", "questions", "notes")


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


def head_scores(network: Llama, maker: RowMaker, rows: int = _ROWS) -> Tensor:
    """[layers, heads]: the share that each head's sight beyond the window has in what it saves, the mean over kinds of
    rows (a kind of which it saves nothing counts 0). `rows`: how many of each kind are read."""
    scores = torch.zeros(network.shape.layers, network.shape.heads)
    for found in _by_kind(maker, rows):
        saved = torch.stack([worth(network, row) for row in found]).mean(0)
        if saved.sum() > _LEAST:
            scores += saved / saved.sum() / len(_KINDS)
    return scores


def _by_kind(maker: RowMaker, count: int) -> Iterator[list[Row]]:
    """`count` rows of each kind that needs the past, fewer or none of a kind that hardly ever fits."""
    found: dict[str, list[Row]] = {kind: [] for kind in _KINDS}
    for row in map(maker.row, range(_TRIED * count)):
        if len(found.get(row.kind, [None] * count)) < count:
            found[row.kind].append(row)
        if all(len(rows) == count for rows in found.values()):
            break
    yield from filter(None, found.values())


def worth(network: Llama, row: Row) -> Tensor:
    """[layers, heads]: nats a token at the row's places that sight beyond the window saves, shared out."""
    total = torch.zeros(network.shape.layers, network.shape.heads)
    for value in _MASKS:
        mask = torch.full_like(total, value, requires_grad=True)
        (gradient,) = torch.autograd.grad(masked_loss(network, row, mask), mask)
        total -= gradient / len(_MASKS)
    return total


def masked_loss(network: Llama, row: Row, mask: Tensor) -> Tensor:
    """Nats a token at the row's places, what each head [layers, heads] finds beyond the window scaled by `mask`."""
    device = network.embed.device
    tokens, places = row.tokens.to(device), row.places.to(device)
    hidden = _masked(network, tokens[None], mask.to(device))[0, places]
    return F.cross_entropy(F.linear(hidden, network.head).float(), tokens[places + 1]).to(mask.device)


def _masked(network: Llama, tokens: Tensor, mask: Tensor) -> Tensor:
    """`Llama.hidden`, masked; a layer's tensors are made again on the way back."""
    eps = network.shape.rms_norm_eps
    stream = network.embed[tokens].float()
    for index in range(network.shape.layers):
        stream = checkpoint(_layer, network, index, stream, mask[index], eps, use_reentrant=False)
    return normed(stream, eps).to(network.dtype)


def _layer(network: Llama, index: int, stream: Tensor, mask: Tensor, eps: float) -> Tensor:
    layer = network.layers[index]
    stream = stream + _attention(network, index, normed(stream, eps).to(network.dtype), mask).float()
    return stream + layer.feed_forward(normed(stream, eps).to(network.dtype)).float()


def _attention(network: Llama, index: int, x: Tensor, mask: Tensor) -> Tensor:
    """x [1, T, d] -> [1, T, d]."""
    layer, count = network.layers[index], x.shape[1]
    query, key, value = network.projected(layer, x)
    place = torch.arange(count, device=x.device)
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < (network.shape.window or count))
    near = seen & ((distance < RAW_WINDOW) | (place == 0))
    whole = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    window = F.scaled_dot_product_attention(query, key, value, attn_mask=near)
    out = window + mask.to(x.dtype)[:, None, None] * (whole - window)
    return F.linear(out.transpose(1, 2).flatten(2), layer.o)
