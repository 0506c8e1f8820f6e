"""Linear maps, the grouped output projection, the router and the experts on the native kernels.

Weights are multiplied as the checkpoint stores them (`foveal.backends.cpu.packing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from foveal import _native
from foveal.backends.cpu import packing
from foveal.backends.reference.native_ops.runtime import runtime
from foveal.formats import Fp4Weight, Fp8Weight
from foveal.formats.tensors import Weight, to_array, weight_arrays
from foveal.ops.interface import ExpertWeights, RouteInput

_known: WeakKeyDictionary[Fp4Weight[Tensor] | Fp8Weight[Tensor], _native.Matrix] = WeakKeyDictionary()


def native_matrix(weight: Weight) -> _native.Matrix:
    """A weight [out, in] as the kernels take it (`foveal.backends.cpu.packing.native_matrix`): an FP4 or FP8 one once,
    the first time it is used. Raises `ValueError` unless the weight is a matrix."""
    if isinstance(weight, Tensor):
        return packing.native_matrix(to_array(weight))
    found = _known.get(weight)
    if found is None:
        found = _known[weight] = packing.native_matrix(weight_arrays(weight))
    return found


def beyond_kernels(weight: Weight) -> bool:
    """See `foveal.backends.cpu.packing.beyond_kernels`."""
    return packing.beyond_kernels(weight_arrays(weight))


def _matrices(weights: Sequence[Weight] | Tensor) -> list[_native.Matrix]:
    return [native_matrix(weight) for weight in weights]


def _rows(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()


def linear(x: Tensor, weight: Weight, *, simulate: bool = False) -> Tensor:
    """``x @ weight.T``: [n, in] -> [n, out] fp32. `simulate` passes x through FP8 (1 x 128 blocks) first."""
    x = _rows(x)
    out = torch.empty(*x.shape[:-1], weight.shape[0])
    _native.linear(
        runtime(), x.view(-1, x.shape[-1]), [native_matrix(weight)], [simulate], [out.view(-1, weight.shape[0])]
    )
    return out


def grouped_output(out: Tensor, wo_a: Weight, wo_b: Weight, groups: int, *, simulate: bool = False) -> Tensor:
    """Heads [n, H, c] -> [n, d]: each group of H / g heads through its slice of `wo_a`, all through `wo_b`."""
    y = torch.empty(len(out), wo_b.shape[0])
    heads = _rows(out).view(len(out), out.shape[1] * out.shape[2])
    _native.grouped_output(runtime(), heads, native_matrix(wo_a), native_matrix(wo_b), groups, simulate, y)
    return y


def route(y: Tensor, x: RouteInput) -> tuple[Tensor, Tensor, Tensor]:
    """y [n, d] -> experts [n, A] int64, their weights [n, A], and all affinities [n, E], in fp32 throughout."""
    chosen = torch.empty(len(y), x.active, dtype=torch.int32)
    weights = torch.empty(len(y), x.active)
    affinity = torch.empty(len(y), len(x.gate))
    bias = None if x.bias is None else _rows(x.bias)
    table = None if x.table is None else x.table.to(torch.int64).contiguous()
    tokens = None if x.table is None else x.tokens.to(torch.int64).contiguous()
    gate = native_matrix(x.gate)
    _native.route(runtime(), _rows(y), gate, bias, table, tokens, x.scale, chosen, weights, affinity)
    return chosen.to(torch.int64), weights, affinity


def experts(
    y: Tensor,
    chosen: Tensor,
    weights: Tensor,
    routed: ExpertWeights,
    shared: ExpertWeights,
    *,
    simulate: bool = False,
) -> Tensor:
    """Routed experts, weighted, plus the shared ones: [n, d] -> [n, d]. SwiGLU with the clamp at `limit`.

    Raises `ValueError` when the routed and the shared experts are clamped differently.
    """
    if routed.limit != shared.limit and len(shared.w1):
        raise ValueError(f"routed experts are clamped at {routed.limit}, shared ones at {shared.limit}")
    y = _rows(y)
    out = torch.empty_like(y)
    all_shared = list(zip(shared.w1, shared.w2, shared.w3, strict=True))
    first = [native_matrix(weight) for weight in all_shared[0]] if all_shared else []
    parts = (_matrices(routed.w1), _matrices(routed.w2), _matrices(routed.w3))
    picked = chosen.to(torch.int32).contiguous()
    _native.experts(runtime(), y, picked, _rows(weights), *parts, first, routed.limit, simulate, out)
    for gate, down, up in all_shared[1:]:
        out += _shared_alone(y, gate, down, up, shared.limit, simulate)
    return out


def _shared_alone(y: Tensor, gate: Weight, down: Weight, up: Weight, limit: float, simulate: bool) -> Tensor:
    """One more shared expert: an expert that every token chose with weight 1."""
    out = torch.empty_like(y)
    chosen, weights = torch.zeros(len(y), 1, dtype=torch.int32), torch.ones(len(y), 1)
    w1, w2, w3 = ([native_matrix(weight)] for weight in (gate, down, up))
    _native.experts(runtime(), y, chosen, weights, w1, w2, w3, [], limit, simulate, out)
    return out


__all__ = ["beyond_kernels", "experts", "grouped_output", "linear", "native_matrix", "route"]
