"""How one compressed entry becomes bytes, and comes back.

What is special here: a codec knows one entry, never a page. Entries are laid one after the other, each in
`nbytes` contiguous bytes, so that picking some of them is picking rows. All FP8 and FP4 arithmetic is
`foveal.formats`'s; these classes only bind it to a width.

Shape legend: n = entries, e = channels of an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from foveal.formats import (
    decode_index_fp4,
    decode_kv_fp8,
    encode_index_fp4,
    encode_kv_fp8,
    index_fp4_bytes,
    kv_fp8_bytes,
)

_E4M3_MAX = 448.0
_SCALE_BYTES = 4


class EntryCodec(Protocol):
    """Bytes of one entry, and the two ways between values and bytes."""

    @property
    def nbytes(self) -> int:
        """Bytes of one entry."""
        ...

    @property
    def width(self) -> int:
        """Channels of one entry, e."""
        ...

    def encode(self, entries: Tensor) -> Tensor:
        """Floating-point entries [n, e] -> uint8 [n, nbytes]."""
        ...

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [n, nbytes] -> entries [n, e] in `dtype`."""
        ...


@dataclass(frozen=True)
class Raw:
    """Plain BF16 or FP32 numbers."""

    width: int
    stored: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.width * self.stored.itemsize

    def encode(self, entries: Tensor) -> Tensor:
        return entries.to(self.stored).contiguous().view(torch.uint8)

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return rows.view(self.stored).to(dtype)


@dataclass(frozen=True)
class KvFp8:
    """E4M3 in blocks of 64 with ue8m0 scales, rotary channels BF16: 584 bytes at 512 channels."""

    width: int
    rope_dim: int

    @property
    def nbytes(self) -> int:
        return kv_fp8_bytes(self.width, self.rope_dim)

    def encode(self, entries: Tensor) -> Tensor:
        return encode_kv_fp8(entries, self.rope_dim)

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return decode_kv_fp8(rows, self.width, self.rope_dim, dtype)


@dataclass(frozen=True)
class IndexFp4:
    """E2M1 in blocks of 32 with ue8m0 scales: 68 bytes at 128 channels."""

    width: int

    @property
    def nbytes(self) -> int:
        return index_fp4_bytes(self.width)

    def encode(self, entries: Tensor) -> Tensor:
        return encode_index_fp4(entries)

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return decode_index_fp4(rows, self.width, dtype)


@dataclass(frozen=True)
class IndexFp8:
    """E4M3 with one fp32 scale for the whole key: 132 bytes at 128 channels.

    What servers without FP4 hardware keep. The scale is amax / 448, at least the smallest normal fp32 number.
    """

    width: int

    @property
    def nbytes(self) -> int:
        return self.width + _SCALE_BYTES

    def encode(self, entries: Tensor) -> Tensor:
        values = entries.float()
        peak = values.abs().amax(-1, keepdim=True)
        scale = (peak / _E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
        codes = (values / scale).clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)
        return torch.cat([codes.view(torch.uint8), scale.contiguous().view(torch.uint8)], dim=-1)

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        codes = rows[:, : self.width].contiguous().view(torch.float8_e4m3fn).float()
        scale = rows[:, self.width :].contiguous().view(torch.float32)
        return (codes * scale).to(dtype)
