"""Mixture of experts (report section 2.4): routing by sqrt(softplus), SwiGLU with a clamp, a shared expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.formats.tensors import Weight
from foveal.ops.interface import ExpertWeights, RouteInput
from foveal.ops.reference.dense import linear


def route(y: Tensor, x: RouteInput) -> tuple[Tensor, Tensor, Tensor]:
    """Which experts, with what weight. The bias (balancing) takes part in the choice, not in the weight."""
    affinity = torch.sqrt(F.softplus(y.to(torch.float32) @ x.gate.to(torch.float32).T))
    if x.table is not None:
        chosen = x.table[x.tokens].to(torch.int64)
    else:
        biased = affinity.detach() if x.bias is None else affinity.detach() + x.bias
        chosen = biased.sort(dim=-1, descending=True, stable=True).indices[:, : x.active]
    picked = affinity.gather(1, chosen)
    return chosen, picked / picked.sum(-1, keepdim=True) * x.scale, affinity


def experts(
    y: Tensor,
    chosen: Tensor,
    weights: Tensor,
    routed: ExpertWeights,
    shared: ExpertWeights,
    *,
    simulate: bool = False,
) -> Tensor:
    """Sum of the chosen experts, weighted before their down-projection, in ascending order, plus the shared experts."""
    out = torch.zeros_like(y)
    for expert in torch.unique(chosen).tolist():
        rows, slot = torch.where(chosen == expert)
        gate, down, up = routed.w1[expert], routed.w2[expert], routed.w3[expert]
        part = _swiglu(y[rows], gate, down, up, routed.limit, weights[rows, slot].unsqueeze(1), simulate)
        out = out.index_add(0, rows, part.to(out.dtype))  # autocast leaves y in fp32 and makes BF16 of products
    for gate, down, up in zip(shared.w1, shared.w2, shared.w3, strict=True):
        out = out + _swiglu(y, gate, down, up, shared.limit, None, simulate)
    return out


def _swiglu(
    y: Tensor, gate: Weight, down: Weight, up: Weight, limit: float, weight: Tensor | None, simulate: bool
) -> Tensor:
    a = linear(y, gate, simulate=simulate).clamp(max=limit)
    b = linear(y, up, simulate=simulate).clamp(-limit, limit)
    z = F.silu(a) * b
    return linear(z if weight is None else z * weight, down, simulate=simulate)
