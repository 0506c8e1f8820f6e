"""The compressors of CSA and HCA (report section 2.3): r tokens become one entry."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.config import CSA_RATIO
from foveal.ops.interface import CompressInput
from foveal.ops.reference.dense import rms_norm, rotate


def compress(x: CompressInput) -> Tensor:
    """New entries [m, e] from every window that is complete in x.

    CSA: entry s weighs eight slots per channel, the previous window's first halves (F) and this window's second halves
    (S); for s = 0 there is no previous window. HCA: the r tokens of the window itself. Each entry is normed and rotated
    to the position of its window's first token.
    """
    overlap = x.ratio == CSA_RATIO
    windows = len(x.kv) // x.ratio
    kv = x.kv[: windows * x.ratio].unflatten(0, (windows, x.ratio))
    gate = x.gate[: windows * x.ratio].unflatten(0, (windows, x.ratio))
    skip = x.first_entry - x.first_position // x.ratio
    if overlap:
        kv, gate = _overlapped(kv, gate)
    kv, gate = kv[skip:], gate[skip:]
    summed = (torch.softmax(gate, dim=1) * kv).sum(dim=1)
    starts = (x.first_entry + torch.arange(len(summed), device=summed.device)) * x.ratio
    return rotate(rms_norm(summed, x.norm, x.eps), starts, x.rotation)


def _overlapped(kv: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """[m, 4, 2e] windows -> [m, 8, e] slots: F halves of the window before, S halves of the window itself.

    The first window has no predecessor here: its F slots get weight 0. Where one exists, the caller's rows begin with
    it, and that first window is only a predecessor.
    """
    kv_before, kv_own = kv.chunk(2, dim=-1)
    gate_before, gate_own = gate.chunk(2, dim=-1)
    none = torch.zeros_like(kv_before[:1])
    never = torch.full_like(gate_before[:1], float("-inf"))
    kv_before = torch.cat([none, kv_before[:-1]])[: len(kv)]
    gate_before = torch.cat([never, gate_before[:-1]])[: len(kv)]
    return torch.cat([kv_before, kv_own], dim=1), torch.cat([gate_before, gate_own], dim=1)
