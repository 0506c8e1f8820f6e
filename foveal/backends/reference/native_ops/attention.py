"""Attention on the native kernels, for rows and entries that lie in plain tensors.

Nothing is copied when the tensors are contiguous; rows in fp32 are multiplied as such, rows in BF16 as the cache's. No
gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops.runtime import runtime
from foveal.ops.interface import AttendInput, Mass


def attend(x: AttendInput, *, trace: int = 0) -> tuple[Tensor, Mass | None]:
    """Softmax over {window positions, entries, sink}; the sink only enters the denominator (report section 2.3).

    Shapes as in `AttendInput`; `window` and `entries` any float dtype (BF16 stays as it is, others become fp32).
    Returns fp32 [n, H, c] and, with `trace` > 0, the weights of the last `trace` tokens summed over heads, fp32. Raises
    `ValueError` when the shapes do not fit.
    """
    query = x.query.detach().float().contiguous()
    out = torch.empty_like(query)
    if not len(query):
        return out, None
    position = int(x.positions[0])
    window, window_codec = _rows(x.window)
    entries, entry_codec = _rows(x.entries)
    indices = None if x.indices is None else x.indices.to(torch.int32).contiguous()
    columns = len(entries) if indices is None else indices.shape[1]
    mass = Mass(torch.empty(trace, columns), torch.empty(trace, x.window_size)) if trace else None
    job = _native.AttendJob(
        query=query,
        position=position,
        out=out,
        sink=x.sink.detach().float().contiguous(),
        frequencies=x.rotation.frequencies.detach().float().contiguous(),
        fresh=window,
        length=position + len(query) - len(window),
        window_codec=window_codec,
        window_size=x.window_size,
        pages=[entries] if len(entries) else [],
        entry_codec=entry_codec,
        count=len(entries),
        per_page=max(1, len(entries)),
        ratio=x.ratio,
        indices=indices,
        entry_mass=mass.entries if mass else None,
        window_mass=mass.window if mass else None,
    )
    _native.attend(runtime(), [job])
    return out, mass


def _rows(x: Tensor) -> tuple[Tensor, str]:
    """Rows as the kernels take them, and the name of their codec. BF16 crosses as uint16: raw memory."""
    rows = x.detach().contiguous()
    if rows.dtype is torch.bfloat16:
        return rows.view(torch.uint16), "bf16"
    return rows.float(), "f32"
