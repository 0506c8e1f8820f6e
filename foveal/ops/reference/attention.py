"""Attention over the raw window and the compressed entries, in one softmax with a sink (report section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.ops.interface import AttendInput, Mass
from foveal.ops.reference.dense import rotate

_ROWS = 128
"""Tokens attended at a time: a block sees at most _ROWS + W - 1 window rows and the entries visible to its last."""


@dataclass(frozen=True)
class _Block:
    out: Tensor
    entry_mass: Tensor
    window_mass: Tensor


def attend(x: AttendInput, *, trace: int = 0) -> tuple[Tensor, Mass | None]:
    """Softmax over {window positions, entries, sink}; the sink only enters the denominator. See `AttendInput`."""
    count = len(x.query)
    blocks, masses = [], []
    for start in range(0, count, _ROWS):
        stop = min(start + _ROWS, count)
        block = _attend_rows(x, start, stop, traced=stop > count - trace)
        blocks.append(block.out)
        if stop > count - trace:
            first = max(0, count - trace - start)
            masses.append((block.entry_mass[first:], block.window_mass[first:]))
    out = torch.cat(blocks) if blocks else x.query
    out = rotate(out, x.positions, x.rotation, inverse=True)
    return out, _join(masses) if trace else None


def _attend_rows(x: AttendInput, start: int, stop: int, *, traced: bool) -> _Block:
    query = x.query[start:stop]
    scale = query.shape[-1] ** -0.5
    past = len(x.window) - len(x.query)
    first = max(0, past + start - x.window_size + 1)
    rows = x.window[first : past + stop]
    distance = torch.arange(past + start, past + stop, device=query.device).unsqueeze(1) - torch.arange(
        first, past + stop, device=query.device
    )
    outside = (distance < 0) | (distance >= x.window_size)
    near = torch.einsum("nhc,wc->nhw", query, rows) * scale
    near = near.masked_fill(outside.unsqueeze(1), float("-inf"))
    far, values = _entry_logits(x, start, stop, query, scale)
    sink = x.sink.to(query.dtype).view(1, -1, 1).expand(len(query), -1, 1)
    weights = torch.softmax(torch.cat([near, far, sink], dim=-1), dim=-1)
    near_weights, far_weights = weights[..., : near.shape[-1]], weights[..., near.shape[-1] : -1]
    out = torch.einsum("nhw,wc->nhc", near_weights, rows)
    pattern = "nhk,nkc->nhc" if x.indices is not None else "nhk,kc->nhc"
    out = out + torch.einsum(pattern, far_weights, values)
    if not traced:
        return _Block(out, out.new_empty(0), out.new_empty(0))
    window_mass = _by_distance(near_weights.sum(1), distance, x.window_size)
    return _Block(out, far_weights.sum(1), window_mass)


def _entry_logits(x: AttendInput, start: int, stop: int, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Logits [n, H, k] on the entries, -inf where a token may not look, and the entries themselves ([k, c] shared by
    all tokens, or [n, k, c] gathered)."""
    if x.indices is not None:
        chosen = x.indices[start:stop]
        values = x.entries[chosen.clamp(min=0)]
        logits = torch.einsum("nhc,nkc->nhk", query, values) * scale
        return logits.masked_fill((chosen < 0).unsqueeze(1), float("-inf")), values
    if not x.ratio:
        return query.new_empty(*query.shape[:2], 0), query.new_empty(0, query.shape[-1])
    visible = (x.positions[start:stop] + 1) // x.ratio
    values = x.entries[: int(visible[-1])]
    logits = torch.einsum("nhc,kc->nhk", query, values) * scale
    hidden = torch.arange(len(values), device=query.device) >= visible.unsqueeze(1)
    return logits.masked_fill(hidden.unsqueeze(1), float("-inf")), values


def _by_distance(mass: Tensor, distance: Tensor, window: int) -> Tensor:
    """[n, rows] mass on rows -> [n, W] mass by distance, column W-1 being the token itself."""
    inside = (distance >= 0) & (distance < window)
    columns = (window - 1 - distance).clamp(0, window - 1)
    result = mass.new_zeros(len(mass), window)
    return result.scatter_add(1, columns, mass * inside)


def _join(masses: list[tuple[Tensor, Tensor]]) -> Mass:
    """One table for all traced tokens: blocks that saw fewer entries are padded with 0."""
    width = max(entry.shape[1] for entry, _ in masses)
    entries = [torch.nn.functional.pad(entry, (0, width - entry.shape[1])) for entry, _ in masses]
    return Mass(entries=torch.cat(entries), window=torch.cat([window for _, window in masses]))
