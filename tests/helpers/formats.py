"""The formats as functions of torch tensors, for tests that compute with torch: numpy's on the same memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal import formats
from foveal.formats import E2M1_VALUES, Fp4Weight, Fp8Weight, index_fp4_bytes, kv_fp8_bytes
from foveal.formats.tensors import (
    Weight,
    dequantize,
    fake_quantize_fp4,
    fake_quantize_fp8,
    fake_quantize_kv,
    fake_quantize_weight_fp4,
    fake_quantize_weight_fp8,
    fp4_scale,
    fp8_scale,
    to_array,
    to_tensor,
    weight_arrays,
    weight_tensors,
)


def quantize_fp4(w: Tensor) -> Any:
    return weight_tensors(formats.quantize_fp4(to_array(w)))


def quantize_fp8(w: Tensor, scale_dtype: Any = "ue8m0") -> Any:
    return weight_tensors(formats.quantize_fp8(to_array(w), scale_dtype))


def fp4_to_fp8(weight: Any) -> Any:
    arrays = weight_arrays(weight)
    assert isinstance(arrays, Fp4Weight)
    return weight_tensors(formats.fp4_to_fp8(arrays))


def encode_kv_fp8(x: Tensor, rope_dim: int) -> Tensor:
    return to_tensor(formats.encode_kv_fp8(to_array(x), rope_dim))


def decode_kv_fp8(packed: Tensor, width: int, rope_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return to_tensor(formats.decode_kv_fp8(to_array(packed), width, rope_dim)).to(dtype)


def encode_index_fp4(x: Tensor) -> Tensor:
    return to_tensor(formats.encode_index_fp4(to_array(x)))


def decode_index_fp4(packed: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return to_tensor(formats.decode_index_fp4(to_array(packed), width)).to(dtype)


def decode_e8m0(codes: Tensor) -> Tensor:
    return to_tensor(formats.decode_e8m0(to_array(codes)))


class TensorCodec:
    """A codec of the cache (`foveal.cache.codec`) on tensors."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec
        self.nbytes, self.width = codec.nbytes, codec.width

    def encode(self, entries: Tensor) -> Tensor:
        return to_tensor(self.codec.encode(to_array(entries)))

    def decode(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return to_tensor(self.codec.decode(to_array(rows), formats.F32)).to(dtype)


__all__ = [
    "E2M1_VALUES",
    "fp4_scale",
    "fp8_scale",
    "index_fp4_bytes",
    "kv_fp8_bytes",
    "Fp4Weight",
    "Fp8Weight",
    "TensorCodec",
    "Weight",
    "decode_e8m0",
    "decode_index_fp4",
    "decode_kv_fp8",
    "dequantize",
    "encode_index_fp4",
    "encode_kv_fp8",
    "fake_quantize_fp4",
    "fake_quantize_fp8",
    "fake_quantize_kv",
    "fake_quantize_weight_fp4",
    "fake_quantize_weight_fp8",
    "fp4_to_fp8",
    "quantize_fp4",
    "quantize_fp8",
    "to_array",
    "to_tensor",
    "weight_arrays",
    "weight_tensors",
]
