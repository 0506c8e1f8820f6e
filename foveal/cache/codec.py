"""How one compressed entry becomes bytes, and comes back.

A codec knows one entry, never a page. Entries are laid one after the other, each in `nbytes` contiguous bytes, so that
picking some of them is picking rows. All FP8 and FP4 arithmetic is `foveal.formats`'s; these classes only bind it to a
width.

Shape legend: n = entries, e = channels of an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from foveal.formats import (
    E4M3,
    F32,
    Array,
    DType,
    decode_e4m3,
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

    def encode(self, entries: Array) -> Array:
        """Floating-point entries [n, e] -> uint8 [n, nbytes]."""
        ...

    def decode(self, rows: Array, dtype: DType) -> Array:
        """uint8 [n, nbytes] -> entries [n, e] in `dtype`."""
        ...


@dataclass(frozen=True)
class Raw:
    """Plain BF16 or FP32 numbers."""

    width: int
    stored: DType

    @property
    def nbytes(self) -> int:
        return self.width * self.stored.itemsize

    def encode(self, entries: Array) -> Array:
        return np.ascontiguousarray(entries.astype(self.stored, copy=False)).view(np.uint8)

    def decode(self, rows: Array, dtype: DType) -> Array:
        return rows.view(self.stored).astype(dtype, copy=False)


@dataclass(frozen=True)
class KvFp8:
    """E4M3 in blocks of 64 with ue8m0 scales, rotary channels BF16: 584 bytes at 512 channels."""

    width: int
    rope_dim: int

    @property
    def nbytes(self) -> int:
        return kv_fp8_bytes(self.width, self.rope_dim)

    def encode(self, entries: Array) -> Array:
        return encode_kv_fp8(entries, self.rope_dim)

    def decode(self, rows: Array, dtype: DType) -> Array:
        return decode_kv_fp8(rows, self.width, self.rope_dim, dtype)


@dataclass(frozen=True)
class IndexFp4:
    """E2M1 in blocks of 32 with ue8m0 scales: 68 bytes at 128 channels."""

    width: int

    @property
    def nbytes(self) -> int:
        return index_fp4_bytes(self.width)

    def encode(self, entries: Array) -> Array:
        return encode_index_fp4(entries)

    def decode(self, rows: Array, dtype: DType) -> Array:
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

    @np.errstate(over="ignore", invalid="ignore")
    def encode(self, entries: Array) -> Array:
        values = entries.astype(F32, copy=False)
        peak = np.abs(values).max(-1, keepdims=True, initial=0)
        scale = np.maximum(peak / np.float32(_E4M3_MAX), np.finfo(np.float32).tiny)
        codes = np.clip(values / scale, -_E4M3_MAX, _E4M3_MAX).astype(E4M3)
        return np.concatenate([codes.view(np.uint8), np.ascontiguousarray(scale).view(np.uint8)], axis=-1)

    @np.errstate(over="ignore", invalid="ignore")
    def decode(self, rows: Array, dtype: DType) -> Array:
        codes = decode_e4m3(rows[:, : self.width])
        scale = np.ascontiguousarray(rows[:, self.width :]).view(np.float32)
        return (codes * scale).astype(dtype, copy=False)
