"""Linear maps, the grouped output projection, the router and the experts on the native kernels.

What is special here: weights are handed over as the checkpoint stores them and multiplied in that form. An FP4 or FP8
weight becomes a `_native.Matrix` once, the first time it is used, and keeps it for as long as it lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from foveal import _native
from foveal.formats import FP4_BLOCK, FP8_BLOCK, Fp4Weight, Fp8Weight, Weight, encode_e8m0
from foveal.ops.cpu.runtime import runtime
from foveal.ops.interface import ExpertWeights, RouteInput

_known: WeakKeyDictionary[Fp4Weight | Fp8Weight, _native.Matrix] = WeakKeyDictionary()


def native_matrix(weight: Weight) -> _native.Matrix:
    """A weight [out, in] as the kernels take it: no copy where they can read it as it lies.

    FP4 and FP8 with E8M0 scales, BF16 and fp32 are read in place. FP8 or FP4 with fp32 scales that are all powers of
    two gets E8M0 scales; for other fp32 scales the kernels have no format, and the whole weight is dequantised to fp32
    once, to four times (FP8) or eight times (FP4) its size. So is a weight that is `beyond_kernels`. Other
    floating-point tensors become fp32.

    Raises `ValueError` unless the weight is a matrix.
    """
    if isinstance(weight, Tensor):
        return native_table(weight.to(torch.float32) if beyond_kernels(weight) else weight)
    found = _known.get(weight)
    if found is None:
        found = _known[weight] = _coded_matrix(weight)
    return found


def _check(weight: Weight) -> tuple[int, int]:
    if len(weight.shape) != 2:
        raise ValueError(f"a weight has shape {list(weight.shape)}; it must be a matrix [out, in]")
    return weight.shape[0], weight.shape[1]


def native_table(weight: Tensor) -> _native.Matrix:
    """A plain weight whose rows are read and not multiplied: the embedding. BF16 and fp32 are read in place."""
    kept = weight.dtype is torch.bfloat16
    plain = weight.detach().to(weight.dtype if kept else torch.float32).contiguous()
    return _native.Matrix("bf16" if kept else "f32", *_check(weight), plain.view(torch.uint8))


def _coded_matrix(weight: Fp4Weight | Fp8Weight) -> _native.Matrix:
    rows, columns = _check(weight)
    scale = _scale_bytes(weight.scale)
    if scale is None or _scales_beyond(weight, scale):
        return _native.Matrix("f32", rows, columns, weight.dequantize().contiguous().view(torch.uint8))
    kind = "fp8" if isinstance(weight, Fp8Weight) else "fp4"
    return _native.Matrix(kind, rows, columns, weight.codes.contiguous().view(torch.uint8), scale)


def _scale_bytes(scale: Tensor) -> Tensor | None:
    """E8M0 bytes of `scale`, or None when some fp32 scale is not a power of two that E8M0 has."""
    if scale.dtype is not torch.float32:
        return scale.contiguous().view(torch.uint8)
    codes = encode_e8m0(scale)
    exact = torch.equal(codes.view(torch.float8_e8m0fnu).float(), scale)
    return codes.contiguous() if exact else None


_SMALLEST_SCALE = 64
_LARGEST_SCALE = 246
"""E8M0 codes, 2^-63 and 2^119, between which every instruction set multiplies alike. Products of BF16 pairs take
numbers below 2^-126 for 0, in weights as in results; the AVX2 decoder scales by 2^8 times the scale, which must be
finite."""

_FEW_ROWS = 1 << 12


def beyond_kernels(weight: Weight) -> bool:
    """Whether some instruction set would lose entries of `weight` that others keep, since they or their scales are too
    small or too large: it is multiplied in fp32 then. Blocks and rows of zeros count as zeros, whatever their scale."""
    if not isinstance(weight, Tensor):
        scale = _scale_bytes(weight.scale)
        return scale is not None and _scales_beyond(weight, scale)
    if weight.dtype is not torch.bfloat16 or weight.ndim != 2:
        return False
    least = (_SMALLEST_SCALE << 7) - 1  # as BF16's bits: below the number that a scale at the bound is
    bits = weight.detach().contiguous().view(torch.int16).numpy().view(np.uint16)
    for start in range(0, len(bits), _FEW_ROWS):
        largest = (bits[start : start + _FEW_ROWS] & np.uint16(0x7FFF)).max(axis=1)
        if bool(((largest > 0) & (largest <= least)).any()):
            return True
    return False


def _scales_beyond(weight: Fp4Weight | Fp8Weight, scale: Tensor) -> bool:
    lowest, highest = (int(code) for code in scale.aminmax())
    if lowest >= _SMALLEST_SCALE and highest <= _LARGEST_SCALE:
        return False
    if bool(((scale > _LARGEST_SCALE) & (scale < 255)).any()):
        return True
    return bool(((scale < _SMALLEST_SCALE) & _used_blocks(weight)).any())


def _used_blocks(weight: Fp4Weight | Fp8Weight) -> Tensor:
    """Blocks that hold anything but zeros, in the shape of the scales."""
    if isinstance(weight, Fp4Weight):
        return (weight.codes.view(torch.uint8) & 0x77).unflatten(-1, (-1, FP4_BLOCK // 2)).amax(-1) > 0
    rows, columns = weight.shape
    magnitude = weight.codes.view(torch.uint8) & 0x7F
    padded = torch.nn.functional.pad(magnitude, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    return padded.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK)).amax((1, 3)) > 0


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


__all__ = ["beyond_kernels", "experts", "grouped_output", "linear", "native_matrix", "native_table", "route"]
