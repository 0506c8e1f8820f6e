"""The indexer's operations on the native kernels, for keys that lie in a plain tensor.

Keys are packed on every call, which costs about as much as scoring them once; the network's own loop keeps packs beside
its pages instead. FP4 keys are found out by looking: then scores are exact integer sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops.runtime import runtime


def _pack(query: Tensor, weights: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, _native.IndexKeys]:
    """The operands as the kernels take them: fp32, contiguous, and the keys [s, ci] packed."""
    plain = keys.detach().float().contiguous()
    kind = "fp4" if plain.numel() and _native.index_is_fp4(plain) else "f32"
    packed = _native.IndexKeys(runtime(), plain, *plain.shape, codec="f32", kind=kind)
    return query.detach().float().contiguous(), weights.detach().float().contiguous(), packed


def index_scores(query: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """score[n, s] = sum over heads of weight[n, h] * relu(query[n, h] . keys[s]) (report section 2.3.2).

    `query` [n, I, ci], `weights` [n, I], `keys` [s, ci], any float dtype -> fp32 [n, s]; no gradient. Raises
    `ValueError` when the shapes do not fit.
    """
    query, weights, packed = _pack(query, weights, keys)
    scores = torch.empty(len(query), len(keys))
    _native.index_scores(runtime(), query, weights, packed, scores)
    return scores


def index_topk(query: Tensor, weights: Tensor, keys: Tensor, visible: Tensor, k: int) -> Tensor:
    """The k best-scored of the first visible[i] keys for each token: [n, min(k, s)] int64, ascending, padded with -1.

    Shapes as for `index_scores`; `visible` [n] int64. Ties take the lowest index; a NaN score counts as -inf. Raises
    `ValueError` when the shapes do not fit.
    """
    query, weights, packed = _pack(query, weights, keys)
    chosen = torch.empty(len(query), min(k, len(keys)), dtype=torch.int32)
    _native.index_topk(runtime(), [(query, weights, packed, visible.contiguous(), chosen)])
    return chosen.long()
