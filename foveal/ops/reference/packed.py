"""The operations that look at a past, over whole rows of packed documents (training).

The same formulas as `attention`, `compression` and `indexing`, on [B, T, ...] at once. Each document sees itself only.
Queries go in blocks, and a block is given no more entries than its last token could see, so that most of what causality
forbids is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.config import CSA_RATIO
from foveal.ops.packed import PackedAttendInput, PackedCompressInput, Windows
from foveal.ops.reference.dense import rms_norm, rotate

_ROWS = {"cpu": 256}
"""Tokens attended at a time. On a CPU few, so that the logits stay in its caches; elsewhere all of a row up to
`_MOST_ROWS`, since launches cost more than what causality forbids."""
_MOST_ROWS = 2048


def compress_packed(x: PackedCompressInput) -> Tensor:
    """Entries [B, E, e] of all windows; what stands where there is no window means nothing. See `compress`."""
    ratio, windows = x.windows.ratio, x.windows
    kv, gate = _in_windows(x.kv, windows), _in_windows(x.gate, windows)
    if ratio == CSA_RATIO:
        kv_before, kv = kv.chunk(2, dim=-1)
        gate_before, gate = gate.chunk(2, dim=-1)
        alone = ~windows.follows.view(*windows.follows.shape, 1, 1)
        kv = torch.cat([_shifted(kv_before), kv], dim=2)
        gate = torch.cat([_shifted(gate_before).masked_fill(alone, float("-inf")), gate], dim=2)
    summed = (torch.softmax(gate, dim=2) * kv).sum(dim=2)
    normed = rms_norm(summed, x.norm, x.eps)
    return rotate(normed.flatten(0, 1), windows.position.flatten(), x.rotation).view_as(normed)


def _shifted(windows: Tensor) -> Tensor:
    """[B, E, 4, e] -> the same, each window in the place of the one after it."""
    return F.pad(windows, (0, 0, 0, 0, 1, 0))[:, : windows.shape[1]]


def _in_windows(rows: Tensor, windows: Windows) -> Tensor:
    """[B, T, w] -> [B, E, ratio, w]: the rows of each window."""
    if windows.regular:
        return rows.unflatten(1, (-1, windows.ratio))
    count, length = rows.shape[:2]
    inside = torch.arange(windows.ratio, device=rows.device)
    base = torch.arange(count, device=rows.device).view(-1, 1, 1) * length
    index = (base + windows.start.unsqueeze(2) + inside).flatten()
    return rows.flatten(0, 1).index_select(0, index).view(count, -1, windows.ratio, rows.shape[-1])


def index_scores_packed(query: Tensor, weights: Tensor, keys: Tensor, ratio: int) -> Tensor:
    """query [B, T, I, ci], weights [B, T, I], keys [B, E, ci] -> scores [B, T, E]; 0 where a block's last token could
    not see an entry. See `index_scores`."""
    count, length, heads, width = query.shape
    size = _block(query, length)
    found = []
    for start in range(0, length, size):
        rows = slice(start, min(start + size, length))
        seen = keys[:, : rows.stop // ratio]
        products = torch.relu(query[:, rows].reshape(count, -1, width) @ seen.mT)
        products = products.view(count, rows.stop - start, heads, -1)
        scores = (weights[:, rows].unsqueeze(2) @ products).squeeze(2)
        found.append(F.pad(scores, (0, keys.shape[1] - scores.shape[-1])))
    return torch.cat(found, dim=1)


def choose_packed(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """Which of the visible entries are among a token's k best: [B, T, E] bool. Ties take the lowest index."""
    if k >= scores.shape[-1]:
        return visible
    scores = scores.detach().masked_fill(~visible, float("-inf"))
    threshold = scores.topk(k, dim=-1).values[..., -1:]
    above, equal = scores > threshold, scores == threshold
    room = k - above.sum(-1, keepdim=True)
    return (above | (equal & (equal.cumsum(-1) <= room))) & visible


def attend_packed(x: PackedAttendInput, *, trace: bool = False) -> tuple[Tensor, Tensor | None]:
    """Softmax over {raw window, allowed entries, sink} within the document: [B, T, H, c], inverse rotation at the end.

    With `trace` also the attention weight on entries, summed over heads [B, T, E], without a gradient.
    """
    blocks = _Blocks.of(x)
    kv = F.pad(x.kv, (0, 0, 0, blocks.missing)).unflatten(1, (-1, blocks.size))
    query = F.pad(x.query, (0, 0, 0, 0, 0, blocks.missing))
    entries = query.new_zeros(query.shape[0], 0, query.shape[-1]) if x.entries is None else x.entries
    attended, mass = _Attend.apply(query, kv, entries, x.sink, blocks, trace)
    attended = attended[:, : x.query.shape[1]]
    turned = rotate(attended.flatten(0, 1), x.packing.position.flatten(), x.rotation, inverse=True)
    return turned.view_as(attended), mass[:, : x.query.shape[1]] if trace else None


@dataclass(frozen=True)
class _Blocks:
    """How queries are cut: blocks of `size` tokens (the raw window's) see their own block and the one before; `some`
    blocks are attended at a time, with the entries that the last of them can see.

    `hidden` [B, blocks, size, 2 * size] bool; `allowed` [B, blocks * size, E] bool or None; `missing` tokens pad the
    end.
    """

    size: int
    missing: int
    some: int
    ratio: int
    hidden: Tensor
    allowed: Tensor | None

    @classmethod
    def of(cls, x: PackedAttendInput) -> _Blocks:
        size, length = x.window_size, x.kv.shape[1]
        missing = -length % size
        document = F.pad(x.packing.document, (size, missing), value=-1)
        position = F.pad(x.packing.position, (size, missing), value=-(1 << 40))
        seen_document, seen_position = (t.unfold(1, 2 * size, size) for t in (document, position))
        own_document, own_position = (t[:, size:].unflatten(1, (-1, size)) for t in (document, position))
        distance = own_position.unsqueeze(3) - seen_position.unsqueeze(2)
        other = own_document.unsqueeze(3) != seen_document.unsqueeze(2)
        allowed = None if x.allowed is None else F.pad(x.allowed, (0, 0, 0, missing))
        some = max(1, _block(x.query, length) // size)
        return cls(size, missing, some, x.ratio, other | (distance < 0) | (distance >= size), allowed)

    def pieces(self, count: int) -> list[tuple[slice, slice]]:
        """`count` blocks, `some` at a time: which blocks, and which tokens they are."""
        parts = [slice(first, min(first + self.some, count)) for first in range(0, count, self.some)]
        return [(part, slice(part.start * self.size, part.stop * self.size)) for part in parts]

    def entries(self, stop: int, count: int) -> int:
        """How many of `count` entries tokens before `stop` may see at most."""
        return min(stop // self.ratio, count) if self.ratio else 0


def _with_previous(blocks: Tensor) -> Tensor:
    """[B, blocks, size, c] -> [B, blocks, 2 * size, c]: each behind the one before."""
    return torch.cat([F.pad(blocks[:, :-1], (0, 0, 0, 0, 1, 0)), blocks], dim=2)


class _Attend(torch.autograd.Function):
    """The attention itself, with its gradient written out: everything is computed in a few matrix products for each
    block, weights are kept for the backward pass, and no sum is taken over what a slice left out.

    With P the weights and o the outputs: dP = do v^T, dl = P (dP - do . o), and the sink gets -P_sink (do . o).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, kv: Tensor, entries: Tensor, sink: Tensor, blocks: _Blocks, trace: bool
    ) -> tuple[Tensor, Tensor]:
        count, length, heads, width = query.shape
        dtype = _product_dtype(query)
        scaled, keys = (query * width**-0.5).to(dtype), _with_previous(kv.to(dtype))
        entries = entries.to(dtype)
        out = torch.empty_like(scaled)
        mass = query.new_zeros((count, length if trace else 0, entries.shape[1]), dtype=torch.float32)
        kept = []
        with torch.autocast(query.device.type, enabled=False):
            for part, rows in blocks.pieces(keys.shape[1]):
                n = rows.stop - rows.start
                own = scaled[:, rows].reshape(count, -1, blocks.size * heads, width)
                near = _product(own, keys[:, part].mT).view(count, n, heads, 2 * blocks.size)
                near.masked_fill_(blocks.hidden[:, part].flatten(1, 2).unsqueeze(2), float("-inf"))
                seen = entries[:, : blocks.entries(rows.stop, entries.shape[1])]
                far = _product(own.flatten(1, 2), seen.mT).view(count, n, heads, seen.shape[1])
                if blocks.allowed is not None:
                    far.masked_fill_(~blocks.allowed[:, rows, : seen.shape[1]].unsqueeze(2), float("-inf"))
                last = sink.to(near.dtype).view(1, 1, -1, 1).expand(count, n, -1, 1)
                weights = torch.softmax(torch.cat([near, far, last], dim=-1), dim=-1).to(dtype)
                close, wide, _ = _apart(weights, blocks, seen.shape[1])
                result = close @ keys[:, part]
                if seen.shape[1]:
                    result = result.flatten(1, 2) + wide @ seen
                    if trace:
                        mass[:, rows, : seen.shape[1]] = wide.unflatten(1, (n, heads)).sum(2, dtype=torch.float32)
                out[:, rows] = result.view(count, n, heads, width)
                kept.append(weights)
        ctx.save_for_backward(scaled, keys, entries, out, *kept)
        ctx.blocks, ctx.dtypes = blocks, (query.dtype, kv.dtype, sink.dtype)
        ctx.mark_non_differentiable(mass)
        return out, mass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled, keys, entries, out, *kept = ctx.saved_tensors
        blocks: _Blocks = ctx.blocks
        count, _, heads, width = scaled.shape
        by_query, by_keys = torch.empty_like(scaled), torch.empty_like(keys)
        by_entries = torch.zeros_like(entries, dtype=torch.float32)
        by_sink = scaled.new_zeros(heads, dtype=torch.float32)
        grad = grads[0].to(keys.dtype)
        for (part, rows), weights in zip(blocks.pieces(keys.shape[1]), kept, strict=True):
            n = rows.stop - rows.start
            g, q, o = (t[:, rows].reshape(count, -1, blocks.size * heads, width) for t in (grad, scaled, out))
            dot = (g * o).sum(-1, keepdim=True)
            seen = entries[:, : blocks.entries(rows.stop, entries.shape[1])]
            close, wide, last = _apart(weights, blocks, seen.shape[1])
            by_sink -= (last.reshape(dot.shape) * dot).view(count * n, heads).sum(0, dtype=torch.float32)
            change = (g @ keys[:, part].mT).sub_(dot).mul_(close)
            back = change @ keys[:, part]
            by_keys[:, part] = (change.mT @ q).add_(close.mT @ g)
            if seen.shape[1]:
                g, q, back, dot = (t.flatten(1, 2) for t in (g, q, back, dot))
                change = (g @ seen.mT).sub_(dot).mul_(wide)
                back = back.add_(change @ seen)
                by_entries[:, : seen.shape[1]] += (change.mT @ q).add_(wide.mT @ g)
            by_query[:, rows] = back.view(count, n, heads, width)
        by_query *= width**-0.5
        by_kv = by_keys[:, :, blocks.size :] + F.pad(by_keys[:, 1:, : blocks.size], (0, 0, 0, 0, 0, 1))
        query_dtype, kv_dtype, sink_dtype = ctx.dtypes
        return by_query.to(query_dtype), by_kv.to(kv_dtype), by_entries, by_sink.to(sink_dtype), None, None


def _product_dtype(like: Tensor) -> torch.dtype:
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in fp32, whatever a and b are: logits need more digits than BF16 has."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type != "cuda":
        return (a @ b).to(torch.float32)
    if not b.shape[-1]:
        return a.new_empty(*a.shape[:-1], 0, dtype=torch.float32)
    one, other = a.flatten(0, -3), b.flatten(0, -3)
    return torch.bmm(one, other, torch.float32).view(*a.shape[:-1], b.shape[-1])


def _apart(weights: Tensor, blocks: _Blocks, entries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [B, n, H, 2 * size + entries + 1] -> on the window [B, blocks, size * H, 2 * size], on entries [B, n * H,
    entries], on the sink [B, n, H, 1]."""
    close, wide, last = weights.split([2 * blocks.size, entries, 1], dim=-1)
    near = close.unflatten(1, (-1, blocks.size)).flatten(2, 3)
    return near, wide.flatten(1, 2), last


def _block(like: Tensor, length: int) -> int:
    return min(length, _ROWS.get(like.device.type, _MOST_ROWS))
