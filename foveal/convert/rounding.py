"""Rounding a matrix to FP8 so that its products change little, not its entries.

Every column's rounding error is made up for in the columns that come after it, weighed by how the inputs move together
(E x x^T), as in GPTQ (Frantar et al., arXiv 2210.17323): inputs that are large and nearly constant, which pretrained
models have, would carry their share of the error into every output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.formats import E4M3_MAX, FP8_BLOCK, decode_e8m0, quantize_fp8
from foveal.formats.tensors import round_e4m3, to_array, to_tensor

_DAMPING = 0.01
"""Added to the moment's diagonal, in parts of its mean: few tokens do not show every direction."""
_TOGETHER = 64
"""Columns whose errors are made up for in the rest at once."""


def rounded_fp8(matrix: Tensor, moment: Tensor) -> Tensor:
    """`matrix` [out, in] fp32 with entries that FP8 in its blocks holds exactly; `moment` = E x x^T [in, in]. Rows
    with one entry at most stay as they are."""
    chosen = (matrix != 0).sum(1) > 1
    order = moment.diagonal().argsort(descending=True)
    scale = _block_scales(matrix)[chosen][:, order // FP8_BLOCK]
    result = matrix.clone()
    rounded = torch.empty_like(scale)
    rounded[:, order] = _rounded(matrix[chosen][:, order], scale, _error_factor(moment[order][:, order]))
    result[chosen] = rounded
    return result


def _error_factor(moment: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse moment: row j says where column j's error goes."""
    damped = moment.double() + _DAMPING * moment.diagonal().mean() * torch.eye(len(moment))
    return torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).float()


def _rounded(left: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
    """Columns from the first to the last, `_TOGETHER` at a time."""
    width = left.shape[1]
    for start in range(0, width, _TOGETHER):
        end = min(start + _TOGETHER, width)
        errors = torch.empty(len(left), end - start)
        for place in range(start, end):
            value, unit = left[:, place].clone(), scale[:, place]
            left[:, place] = round_e4m3((value / unit).clamp(-E4M3_MAX, E4M3_MAX)) * unit
            errors[:, place - start] = (value - left[:, place]) / factor[place, place]
            left[:, place + 1 : end] -= errors[:, place - start, None] * factor[place, place + 1 : end]
        left[:, end:] -= errors @ factor[start:end, end:]
    return left


def _block_scales(matrix: Tensor) -> Tensor:
    """The scale of each row's blocks [out, blocks of in]."""
    scale = to_tensor(decode_e8m0(quantize_fp8(to_array(matrix)).scale))
    return scale.repeat_interleave(FP8_BLOCK, 0)[: len(matrix)]
