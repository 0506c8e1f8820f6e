"""Tensors as the bytes of a store, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor


def token_bytes(tokens: Tensor) -> bytes:
    """Token ids as little-endian int32."""
    array = tokens.detach().to("cpu", torch.int32).numpy()
    return array.astype("<i4", copy=False).tobytes()


def token_tensor(data: bytes) -> Tensor:
    """The inverse of `token_bytes`, int32."""
    return torch.from_numpy(np.frombuffer(data, dtype="<i4").astype(np.int32))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, not copied."""
    data: Any = tensor.detach().to("cpu").contiguous().view(torch.uint8).flatten().numpy()
    return memoryview(data).cast("B")


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors as safetensors."""
    own = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(own)


def unpack_tensors(data: bytes) -> dict[str, Tensor]:
    """The inverse of `pack_tensors`. Raises `ValueError` for what torch does not know, or is no tensors at all."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"these are no tensors: {error}") from error
