"""What acts on each token alone: hyper-connections, norms, rotary embedding, run-time quantisation.

Each function makes its result's memory and calls one native kernel (native/kernels/rows.h). For inference: results have
no gradient. Inputs are taken in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops.dense import linear
from foveal.backends.reference.native_ops.runtime import runtime
from foveal.formats.tensors import Weight
from foveal.ops.interface import HyperWeights, Rotation


def plain(x: Tensor) -> Tensor:
    """x as the kernels take it: contiguous fp32 without a gradient; x itself where it is that already."""
    return x.detach().to(torch.float32).contiguous()


def _copy(x: Tensor) -> Tensor:
    """A copy to work on in place."""
    return x.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) over the last axis, times `weight` if there is one. Any leading axes; fp32."""
    rows = plain(x).reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    _native.rms_norm(runtime(), rows, None if weight is None else plain(weight), eps, out)
    return out.view(x.shape)


def rotate(x: Tensor, positions: Tensor, rotation: Rotation, *, inverse: bool = False) -> Tensor:
    """Rotate the last R channels of x [n, ..., c], as interleaved pairs, by positions [n] times frequency."""
    out = _copy(x)
    if out.numel():
        heads = out.view(x.shape[0], -1, x.shape[-1])
        _native.rotate(runtime(), heads, positions.contiguous(), plain(rotation.frequencies), inverse)
    return out


def query(
    latent: Tensor,
    weight: Weight,
    heads: int,
    positions: Tensor,
    rotation: Rotation,
    eps: float | None,
    *,
    simulate: bool = False,
) -> Tensor:
    """Latent [n, q] -> rotated queries [n, heads, c]; each head is RMS-normalised unless `eps` is None."""
    q = linear(latent, weight, simulate=simulate).unflatten(-1, (heads, -1))
    no_norm = -1.0
    frequencies = plain(rotation.frequencies)
    _native.finish_query(runtime(), q, positions.contiguous(), frequencies, no_norm if eps is None else eps, False)
    return q


def hyper_pre(streams: Tensor, weights: HyperWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Streams [n, S, d] -> sub-layer input [n, d], `post` [n, S], `comb` [n, S, S] (source, destination)."""
    n, count, width = streams.shape
    x, post, comb = streams.new_empty(n, width), streams.new_empty(n, count), streams.new_empty(n, count, count)
    matrices = plain(weights.fn), plain(weights.base), plain(weights.scale)
    constants = weights.sinkhorn_iters, weights.eps, weights.norm_eps
    _native.hyper_pre(runtime(), plain(streams), *matrices, *constants, None, x, post, comb)
    return x, post, comb


def hyper_post(out: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """Sub-layer output [n, d] and the streams before it -> the streams after it [n, S, d]."""
    after = _copy(streams)
    _native.hyper_post(runtime(), plain(out), plain(post), plain(comb), after)
    return after


def hyper_head(streams: Tensor, weights: HyperWeights) -> Tensor:
    """Streams [n, S, d] -> [n, d], the weighted sum before the final norm."""
    x = streams.new_empty(streams.shape[0], streams.shape[2])
    matrices = plain(weights.fn), plain(weights.base), plain(weights.scale)
    _native.hyper_head(runtime(), plain(streams), *matrices, weights.eps, weights.norm_eps, None, x)
    return x


def quantize_kv(x: Tensor, rotary: int) -> Tensor:
    """Simulate FP8 on the channels before the last `rotary` ones, in blocks of 64, and BF16 on those."""
    out = _copy(x)
    _native.quantize_kv(runtime(), out.view(-1, x.shape[-1]), rotary)
    return out


def quantize_index(x: Tensor) -> Tensor:
    """Hadamard rotation of the last axis (Sylvester order, orthonormal), then FP4 in blocks of 32.

    Raises ValueError unless the last axis is a power of two.
    """
    out = _copy(x)
    _native.quantize_index(runtime(), out.view(-1, x.shape[-1]))
    return out
