"""Manifold-constrained hyper-connections (report section 2.2): S residual streams under a doubly stochastic mixing."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.ops.interface import HyperWeights


def _mix(streams: Tensor, weights: HyperWeights) -> Tensor:
    """The coefficients' raw values: `fn` times the RMS-normalised streams, flattened stream by stream."""
    flat = streams.flatten(1).to(torch.float32)
    scale = torch.rsqrt(flat.square().mean(-1, keepdim=True) + weights.norm_eps)
    return (flat @ weights.fn.T) * scale


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """logits [n, S, S] -> nearly doubly stochastic: softmax over destinations counts as the first row normalisation,
    then columns and rows in turn, `iterations` of each."""
    comb = torch.softmax(logits, dim=-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return comb


def hyper_pre(streams: Tensor, weights: HyperWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Sub-layer input (weighted sum of streams), and the coefficients `hyper_post` needs."""
    count = streams.shape[1]
    mix = _mix(streams, weights)
    scale, base = weights.scale, weights.base
    pre = torch.sigmoid(mix[:, :count] * scale[0] + base[:count]) + weights.eps
    post = 2 * torch.sigmoid(mix[:, count : 2 * count] * scale[1] + base[count : 2 * count])
    logits = (mix[:, 2 * count :] * scale[2] + base[2 * count :]).unflatten(-1, (count, count))
    comb = sinkhorn(logits, weights.sinkhorn_iters, weights.eps)
    return torch.einsum("ns,nsd->nd", pre, streams), post, comb


def hyper_post(out: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """Streams after the sub-layer: destination k gets ``post_k * out + sum_j comb[j, k] * stream_j``."""
    return post.unsqueeze(-1) * out.unsqueeze(1) + torch.bmm(comb.transpose(1, 2), streams)


def hyper_head(streams: Tensor, weights: HyperWeights) -> Tensor:
    """The weighted sum of streams that the final norm and the LM head read."""
    pre = torch.sigmoid(_mix(streams, weights) * weights.scale + weights.base) + weights.eps
    return torch.einsum("ns,nsd->nd", pre, streams)
