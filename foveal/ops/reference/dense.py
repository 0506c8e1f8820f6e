"""Linear maps, norms, rotary embedding, and the run-time quantisations: what acts on each token alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.formats.tensors import Weight, dequantize, fake_quantize_fp4, fake_quantize_fp8
from foveal.ops.interface import Rotation

ACTIVATION_BLOCK = 128
KV_BLOCK = 64
INDEX_BLOCK = 32


def linear(x: Tensor, weight: Weight, *, simulate: bool = False) -> Tensor:
    """``x @ weight.T`` in x's dtype; with `simulate`, x first goes through FP8 in blocks of 128 (official kernels)."""
    if simulate:
        x = fake_quantize_fp8(x, ACTIVATION_BLOCK)
    return F.linear(x, dequantize(weight, x.dtype))


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) over the last axis, times `weight`."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed if weight is None else normed * weight.to(x.dtype)


def rotate(x: Tensor, positions: Tensor, rotation: Rotation, *, inverse: bool = False) -> Tensor:
    """Rotary embedding on the last R channels, interleaved pairs: (a, b) -> (a cos - b sin, a sin + b cos).

    x [n, ..., c], positions [n]. Angles are fp32 products, as in the official code.
    """
    angles = torch.outer(positions.to(torch.float32), rotation.frequencies)
    cos, sin = angles.cos(), angles.sin()
    if inverse:
        sin = -sin
    shape = (x.shape[0], *(1,) * (x.dim() - 2), rotation.channels // 2)
    cos, sin = cos.view(shape), sin.view(shape)
    still, turning = x[..., : -rotation.channels], x[..., -rotation.channels :]
    even, odd = turning.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([still, turned.to(x.dtype)], dim=-1)


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
    """Queries from the shared latent: up-projection, per-head norm without weight (attention only), rotation."""
    q = linear(latent, weight, simulate=simulate).unflatten(-1, (heads, -1))
    if eps is not None:
        q = rms_norm(q, None, eps)
    return rotate(q, positions, rotation)


def grouped_output(out: Tensor, wo_a: Weight, wo_b: Weight, groups: int, *, simulate: bool = False) -> Tensor:
    """Two-step output projection (report, grouped output): per group of heads H * c / g -> o_lora_rank, then all -> d.

    `wo_a` is never fed quantised activations (official code: a BF16 product); `wo_b` is, with `simulate`.
    """
    grouped = out.reshape(out.shape[0], groups, -1)
    down = dequantize(wo_a, out.dtype).view(groups, -1, grouped.shape[-1])
    latent = torch.bmm(grouped.transpose(0, 1), down.transpose(1, 2)).transpose(0, 1).flatten(1)
    return linear(latent, wo_b, simulate=simulate)


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard rotation of the last axis (a power of two), Sylvester order."""
    width = x.shape[-1]
    step = 1
    while step < width:
        pairs = x.unflatten(-1, (-1, 2, step))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        step *= 2
    return x * width**-0.5


def quantize_kv(x: Tensor, rotary: int) -> Tensor:
    """FP8 simulated on all but the last `rotary` channels, blocks of 64; rotary channels are rounded to BF16.

    The result is exactly what a BF16 cache, or the 584-byte FP8 entry, can hold: storing it loses nothing.
    """
    rounded = x[..., -rotary:].to(torch.bfloat16).to(x.dtype)
    return torch.cat([fake_quantize_fp8(x[..., :-rotary], KV_BLOCK), rounded], dim=-1)


def quantize_index(x: Tensor) -> Tensor:
    """Hadamard rotation, then FP4 in blocks of 32: the precision of the lightning indexer's queries and keys."""
    return fake_quantize_fp4(hadamard(x), min(INDEX_BLOCK, x.shape[-1]))
