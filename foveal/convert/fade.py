"""A logit that depends on distance alone: entries count for little while their tokens are still in the raw window.

Rotary pairs that carry no key have a constant in the query and Fourier coefficients in the entry, so their product is a
trigonometric polynomial in the distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_DEPTH, _MIDDLE, _WIDTH = 8.0, 135.0, 0.125
_ENOUGH = -5.0
"""Below this a logit needs to fall no further: the weight is under 1 %."""
_ROUNDS, _DAMPING = 12, 0.3


def fit_fade(frequencies: Tensor, longest: int = 8192) -> Tensor:
    """Coefficients [2, P] (of cosines and sines) for pairs that turn by `frequencies` [P]: far below 0 for distances
    under the raw window, near 0 beyond it."""
    distance = torch.cat([torch.arange(1024), torch.arange(1024, longest, 4)]).double()
    target = -_DEPTH * torch.sigmoid((math.log(_MIDDLE) - torch.log(distance + 0.5)) / _WIDTH)
    basis = _basis(distance, frequencies)
    weight = torch.where(distance < 140, 3.0, torch.where(distance < 1024, 2.0, 1.0)).double()
    weighted = (basis * weight[:, None]).T
    inverse = torch.linalg.inv(weighted @ basis + _DAMPING * torch.eye(basis.shape[1], dtype=torch.float64))
    wanted = target
    near, between = distance < 118, (distance >= 118) & (distance < 150)
    for _ in range(_ROUNDS):  # what is low enough may stay where it is
        found = basis @ (inverse @ (weighted @ wanted))
        low = found.clamp(max=_ENOUGH)
        wanted = torch.where(near, torch.where(found < _ENOUGH, low, torch.full_like(low, _ENOUGH - 1.5)), target)
        wanted = torch.where(between, found.clamp(-_DEPTH, 0.3), wanted)
    return (inverse @ (weighted @ wanted)).unflatten(0, (2, -1)).float()


def fade_table(coefficients: Tensor, frequencies: Tensor, length: int) -> Tensor:
    """The logit at distances 0 to `length` - 1, fp32."""
    distance = torch.arange(length).double()
    return (_basis(distance, frequencies) @ coefficients.double().flatten()).float()


def _basis(distance: Tensor, frequencies: Tensor) -> Tensor:
    angles = distance[:, None] * frequencies.double()
    return torch.cat([angles.cos(), angles.sin()], 1)
