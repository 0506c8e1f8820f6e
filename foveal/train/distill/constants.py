"""A direction of each layer's attention input along which it is nearly 1.

V4's projections have no biases. What must not depend on the token (offsets, a logit that depends on distance alone) is
carried along this direction instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.convert.llama import Hook, Llama, Part

_FIRST = 0.1
"""What the first tokens of texts count for together, in parts of all others: every text rests on its first token."""
_DAMPING = 1e-3


def fit_constants(network: Llama, rows: Tensor, beginnings: Sequence[int]) -> Tensor:
    """Directions [layers, d] fp32: least squares of w . x = 1 over the tokens of `rows` [n, T], and over first tokens,
    which are `beginnings`."""
    s = network.shape
    device = network.embed.device
    moment = torch.zeros(s.layers, s.hidden_size, s.hidden_size, device=device)
    mean = torch.zeros(s.layers, s.hidden_size, device=device)

    def add(weight: float) -> Hook:
        def hook(part: Part, layer: int, x: Tensor) -> None:
            if part == "attention":
                flat = x.flatten(0, 1)
                moment[layer].addmm_(flat.T, flat, alpha=weight / len(flat))
                mean[layer].add_(flat.mean(0), alpha=weight)

        return hook

    for row in rows:
        network.hidden(row[None].to(device), add(1 / len(rows)))
    for token in beginnings:
        network.hidden(torch.tensor([[token]], device=device), add(_FIRST / len(beginnings)))
    damping = _DAMPING * moment.diagonal(dim1=1, dim2=2).mean(-1)
    identity = torch.eye(s.hidden_size, device=device)
    return torch.linalg.solve(moment + damping[:, None, None] * identity, mean)
