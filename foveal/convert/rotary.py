"""Putting every group's rotary pairs on V4's frequencies (docs/convert.md, "Rotary pairs").

At one frequency of the source, a group's key is a complex number, k_g = W_g x. The G of them are mixed by an invertible
complex matrix A, k' = A k, and queries by its inverse, q' = A^-H q, so that conj(q) k is what it was. A is chosen so
that the components k' are uncorrelated, strongest first: the first turns at exactly the source's frequency, the others,
with little energy left, at neighbouring ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.convert.source import LlamaShape


@dataclass(frozen=True)
class MixedPairs:
    """`query` [H, G * c, d] and `key` [G * c, d] in fp32, component by component, pairs interleaved. `share` [c / 2]:
    the part of the (query-weighted) key energy that the exact pairs carry."""

    query: Tensor
    key: Tensor
    share: Tensor


def mix_pairs(query: Tensor, key: Tensor, moment: Tensor, shape: LlamaShape) -> MixedPairs:
    """From interleaved `query` [H * c, d] and `key` [G * c, d] of the normed input x, and `moment` = E x x^T [d, d]."""
    q, k = _complex(query, shape.heads), _complex(key, shape.groups)  # [H, P, d], [G, P, d]
    s = moment.to(torch.complex128)
    groups = torch.arange(shape.heads) // shape.heads_per_group
    energy = torch.einsum("hpd,de,hpe->hp", q.conj(), s, q).real
    weight = torch.zeros(shape.groups, energy.shape[1], dtype=torch.float64).index_add_(0, groups, energy)
    weight = (weight / shape.heads_per_group).clamp_min(1e-12 * float(weight.max())).sqrt()  # [G, P]
    correlation = torch.einsum("apd,de,bpe->pab", k.conj(), s, k)
    weighted = weight.T[:, :, None] * correlation * weight.T[:, None, :]
    values, vectors = torch.linalg.eigh(weighted)  # ascending
    values, vectors = values.flip(-1), vectors.flip(-1)
    mixing = vectors.transpose(1, 2) * weight.T[:, None, :]  # A [P, component, group]
    inverse = torch.linalg.inv(mixing)  # [P, group, component]
    mixed_key = torch.einsum("pcg,gpd->cpd", mixing, k)
    mixed_query = torch.einsum("hpc,hpd->hcpd", inverse.conj()[:, groups].transpose(0, 1), q)
    share = values[:, 0] / values.sum(-1).clamp_min(1e-300)
    return MixedPairs(_real(mixed_query), _real(mixed_key), share.float())


def _complex(matrix: Tensor, heads: int) -> Tensor:
    """Interleaved rows [heads * c, d] -> [heads, c / 2, d] complex128."""
    even, odd = matrix.double().unflatten(0, (heads, -1, 2)).unbind(2)
    return torch.complex(even, odd)


def _real(matrix: Tensor) -> Tensor:
    """[..., G, P, d] complex -> [..., G * 2P, d] fp32, real and imaginary rows interleaved."""
    return torch.stack([matrix.real, matrix.imag], -2).flatten(-4, -2).float()
