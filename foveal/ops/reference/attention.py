"""Attention over the raw window and the compressed entries, in one softmax with a sink (report section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.ops.interface import AttendInput, Mass
from foveal.ops.reference.dense import rotate

_ROWS = 128
"""Tokens attended at a time (or the window size, if larger): a block sees its own raw rows and the block's before, and
the entries visible to its last token."""

_GATHERED_ROWS = 16
"""Tokens whose chosen entries are gathered at a time: few enough that the copies stay in the processor's cache."""


@dataclass(frozen=True)
class _Rows:
    """Consecutive tokens: their queries [b, H, c], and raw rows [p, c] in which theirs begin at row `own`."""

    query: Tensor
    window: Tensor
    own: int
    positions: Tensor
    chosen: Tensor | None


@dataclass(frozen=True)
class _Block:
    out: Tensor
    entry_mass: Tensor
    window_mass: Tensor


def attend(x: AttendInput, *, trace: int = 0) -> tuple[Tensor, Mass | None]:
    """Softmax over {window positions, entries, sink}; the sink only enters the denominator. See `AttendInput`."""
    untraced = len(x.query) - trace
    outs, masses, done = [], [], 0
    for rows in _blocks(x):
        done += len(rows.query)
        block = _attend_rows(x, rows, traced=done > untraced)
        outs.append(block.out)
        if done > untraced:
            first = max(0, untraced - (done - len(rows.query)))
            masses.append((block.entry_mass[first:], block.window_mass[first:]))
    out = torch.cat(outs) if outs else x.query
    out = rotate(out, x.positions, x.rotation, inverse=True)
    return out, _join(masses) if trace else None


def _blocks(x: AttendInput) -> Iterator[_Rows]:
    """Cut the tokens into blocks. Splitting, unlike slicing, has a gradient that touches every row once."""
    size, count = max(_ROWS, x.window_size), len(x.query)
    past = len(x.window) - count
    pieces = x.window.split([past, *(min(size, count - start) for start in range(0, count, size))])
    chosen = [None] * len(pieces) if x.indices is None else x.indices.split(size)
    each = zip(x.query.split(size), x.positions.split(size), pieces, pieces[1:], chosen, strict=False)
    for query, positions, before, own, indices in each:
        window, start = torch.cat([before, own]), len(before)
        if indices is None:
            yield _Rows(query, window, start, positions, None)
            continue
        few = [part.split(_GATHERED_ROWS) for part in (query, positions, indices)]
        for q, p, i in zip(*few, strict=True):
            yield _Rows(q, window, start, p, i)
            start += len(q)


def _attend_rows(x: AttendInput, block: _Rows, *, traced: bool) -> _Block:
    query, rows = block.query, block.window
    scale = query.shape[-1] ** -0.5
    own = torch.arange(block.own, block.own + len(query), device=query.device).unsqueeze(1)
    distance = own - torch.arange(len(rows), device=query.device)
    outside = (distance < 0) | (distance >= x.window_size)
    near = torch.einsum("nhc,wc->nhw", query, rows) * scale
    near = near.masked_fill(outside.unsqueeze(1), float("-inf"))
    far, values = _entry_logits(x, block, scale)
    sink = x.sink.to(query.dtype).view(1, -1, 1).expand(len(query), -1, 1)
    weights = torch.softmax(torch.cat([near, far, sink], dim=-1), dim=-1)
    near_weights, far_weights, _ = weights.split([near.shape[-1], far.shape[-1], 1], dim=-1)
    out = torch.einsum("nhw,wc->nhc", near_weights, rows)
    if far.shape[-1]:
        pattern = "nhk,nkc->nhc" if block.chosen is not None else "nhk,kc->nhc"
        out = out + torch.einsum(pattern, far_weights, values)
    if not traced:
        return _Block(out, out.new_empty(0), out.new_empty(0))
    window_mass = _by_distance(near_weights.detach().sum(1), distance, x.window_size)
    return _Block(out, far_weights.detach().sum(1), window_mass)


def _entry_logits(x: AttendInput, block: _Rows, scale: float) -> tuple[Tensor, Tensor]:
    """Logits [n, H, k] on the entries, -inf where a token may not look, and the entries themselves ([k, c] shared by
    all tokens, or [n, k, c] gathered)."""
    query, chosen = block.query, block.chosen
    if chosen is not None:
        values = x.entries[chosen.clamp(min=0)]
        logits = torch.einsum("nhc,nkc->nhk", query, values) * scale
        return logits.masked_fill((chosen < 0).unsqueeze(1), float("-inf")), values
    if not x.ratio:
        return query.new_empty(*query.shape[:2], 0), query.new_empty(0, query.shape[-1])
    visible = (block.positions + 1) // x.ratio
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
