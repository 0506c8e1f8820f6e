"""Arrays as the bytes of a store, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from foveal.formats import BF16, F32, Array

_DTYPES = {"BF16": BF16, "F32": F32}
"""What a tail is made of."""


def token_bytes(tokens: Array) -> bytes:
    """Token ids as little-endian int32."""
    return tokens.astype("<i4", copy=False).tobytes()


def token_array(data: bytes) -> Array:
    """The inverse of `token_bytes`, int32."""
    return np.frombuffer(data, dtype="<i4").astype(np.int32)


def array_bytes(array: Array) -> memoryview:
    """The bytes of an array, not copied."""
    data: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(data).cast("B")


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Named arrays as safetensors."""
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def unpack_arrays(data: bytes) -> dict[str, Array]:
    """The inverse of `pack_arrays`, on the memory of `data`. Raises `ValueError` for what no tail has, or is no arrays
    at all."""
    try:
        found = safetensors.deserialize(data)
        return {name: _array(said) for name, said in found}
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"these are no arrays: {error}") from error


def _array(said: dict[str, Any]) -> Array:
    return np.frombuffer(said["data"], dtype=_DTYPES[said["dtype"]]).reshape(said["shape"])
