"""A logit that depends on distance alone: entries count for little while their tokens are still in the raw window.

Rotary pairs that carry no key have a constant in the query and Fourier coefficients in the entry, so their product is a
trigonometric polynomial in the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

VERSION = 2
"""Of the curve: packed entries that learned with another one do not fit."""
_LOW, _NEAR, _FAR = -4.0, 115, 145
"""What the logit is to be under at distances less than `_NEAR`, a weight of 2 %; from `_FAR` on it is to be 0."""
_FOLLOWING = 300
"""Up to here flatness counts double: what has just left the raw window is asked for most."""
_ROUNDS, _DAMPING = 40, 0.1


def fit_fade(frequencies: Tensor, longest: int) -> Tensor:
    """Coefficients [2, P] (of cosines and sines) for pairs that turn by `frequencies` [P]: far below 0 for distances
    under the raw window, near 0 beyond it, to `longest` tokens.

    Weighted least squares, in rounds: what is low enough where it shall be low, and anything on the way up, is wanted
    as it was found.
    """
    distance = torch.cat([torch.arange(1024), torch.arange(1024, max(1028, longest), 4)]).double()
    near, far = distance < _NEAR, distance >= _FAR
    basis = _basis(distance, frequencies)
    weight = torch.where(near, 3.0, torch.where(distance < 1024, 2.0, 1.0)).double()
    weight[far & (distance < _FOLLOWING)] = 4.0
    weighted = (basis * weight[:, None]).T
    inverse = torch.linalg.inv(weighted @ basis + _DAMPING * torch.eye(basis.shape[1], dtype=torch.float64))
    wanted = torch.where(near, _LOW - 1, torch.where(far, 0.0, _LOW / 2)).double()
    for _ in range(_ROUNDS):
        found = basis @ (inverse @ (weighted @ wanted))
        low = torch.where(found < _LOW, found, torch.full_like(found, _LOW - 1))
        wanted = torch.where(near, low, torch.where(far, torch.zeros_like(found), found.clamp(1.5 * _LOW, 0.3)))
    return (inverse @ (weighted @ wanted)).unflatten(0, (2, -1)).float()


def fade_table(coefficients: Tensor, frequencies: Tensor, length: int) -> Tensor:
    """The logit at distances 0 to `length` - 1, fp32."""
    distance = torch.arange(length).double()
    return (_basis(distance, frequencies) @ coefficients.double().flatten()).float()


def _basis(distance: Tensor, frequencies: Tensor) -> Tensor:
    angles = distance[:, None] * frequencies.double()
    return torch.cat([angles.cos(), angles.sin()], 1)
