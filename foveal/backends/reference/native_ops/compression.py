"""The compressors of CSA and HCA (report section 2.3): r tokens become one entry.

The reference's whole list of rows is one stretch of new rows to the kernel (native/kernels/compress.h), which in the
network's own loop also reads the ring of rows before the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops.rows import plain
from foveal.backends.reference.native_ops.runtime import runtime
from foveal.config import CSA_RATIO
from foveal.ops.interface import CompressInput


def compress(x: CompressInput) -> Tensor:
    """Complete windows -> entries [m, e] fp32: gated sum, norm, rotation at s * r.

    Raises ValueError when a CSA entry's previous window is not among the rows.
    """
    kv, gate, norm = plain(x.kv), plain(x.gate), plain(x.norm)
    last = max(x.first_entry, x.first_position // x.ratio + len(kv) // x.ratio)
    entries = torch.empty(last - x.first_entry, len(norm))
    where = x.first_position, x.first_entry, last, x.ratio, x.ratio == CSA_RATIO
    shape = norm, x.eps, plain(x.rotation.frequencies)
    _native.compress(runtime(), None, None, kv, gate, *where, *shape, "plain", "f32", entries.view(torch.uint8))
    return entries
