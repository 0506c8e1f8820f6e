"""The compressor: r tokens become one entry (report section 2.3; streaming state as in the official code).

Everything here is fp32, with no activation quantisation. CSA layers have two: one for attention entries, one for the
indexer's keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveal.cache.contract import Part, entry_width, open_row_count, row_width
from foveal.config import ModelConfig, Numerics
from foveal.model.linear import Matrix, Vector
from foveal.model.state import OpenRows
from foveal.ops import CompressInput, Operations, PackedCompressInput, Rotation, Windows


class Compressor(nn.Module):
    """`wkv`, `wgate` [width, d], `ape` [r, width] and the entries' `norm`."""

    def __init__(self, config: ModelConfig, layer: int, part: Part, ops: Operations) -> None:
        super().__init__()
        self.ops = ops
        self.part = part
        self.ratio = config.compress_ratios[layer]
        self.eps = config.rms_norm_eps
        width = row_width(config, layer, part)
        self.wkv = Matrix(width, config.hidden_size)
        self.wgate = Matrix(width, config.hidden_size)
        self.ape = nn.Parameter(torch.zeros(self.ratio, width))
        self.norm = Vector(entry_width(config, part))

    def rows(self, x: Tensor, positions: Tensor) -> OpenRows:
        """Token inputs x [n, d] -> their rows [n, width], the position bias added to the gate."""
        bias = self.ape.to(x.dtype)[positions % self.ratio]
        return OpenRows(self.ops.linear(x, self.wkv.operand()), self.ops.linear(x, self.wgate.operand()) + bias)

    def advance(
        self, before: OpenRows, new: OpenRows, length: int, rotation: Rotation, numerics: Numerics
    ) -> tuple[OpenRows, Tensor]:
        """Rows left open at `length` and the new tokens' rows -> rows left open now, and the new entries [m, e]."""
        kv, gate = torch.cat([before.kv, new.kv]), torch.cat([before.gate, new.gate])
        stays = open_row_count(self.ratio, length + len(new.kv))
        left = OpenRows(kv[len(kv) - stays :], gate[len(gate) - stays :])
        window = CompressInput(
            kv=kv,
            gate=gate,
            first_position=length - len(before.kv),
            first_entry=length // self.ratio,
            ratio=self.ratio,
            norm=self.norm.weight,
            eps=self.eps,
            rotation=rotation,
        )
        return left, self._rounded(self.ops.compress(window), rotation, numerics)

    def packed(self, rows: OpenRows, windows: Windows, rotation: Rotation, numerics: Numerics) -> Tensor:
        """Rows [B * T, width] of packed documents -> the entries [B, E, e] of their windows."""
        kv, gate = (part.unflatten(0, (len(windows.start), -1)) for part in (rows.kv, rows.gate))
        x = PackedCompressInput(kv, gate, windows, self.norm.weight, self.eps, rotation)
        return self._rounded(self.ops.compress_packed(x), rotation, numerics)

    def _rounded(self, entries: Tensor, rotation: Rotation, numerics: Numerics) -> Tensor:
        if self.part is Part.INDEX:
            return self.ops.quantize_index(entries) if numerics.index else entries
        return self.ops.quantize_kv(entries, rotation.channels) if numerics.kv else entries
