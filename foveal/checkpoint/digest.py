"""A name for a model's content: same fingerprint, same function; the first part of the name of every page it computes.

It depends on the config, and on each weight's name, format, shape and bytes, and on nothing else: not on how the
weights are cut into shards, the names of files, or their dates. A single changed bit changes it.

Definition: BLAKE2b-256 over the config's canonical JSON and, for every weight in the order of its name, a line of name,
format and shape and the BLAKE2b-256 digest of its bytes (codes, then scale). The leaves are hashed by several threads.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np

from foveal.checkpoint.reader import open_checkpoint
from foveal.config import ModelConfig
from foveal.formats import F32, Array, Fp4Weight, Fp8Weight, Weight, dtype_name

FINGERPRINT_BYTES = 32

_CHUNK = 1 << 24


def fingerprint(config: ModelConfig, weights: Mapping[str, Weight] | Path | str) -> bytes:
    """32 bytes that name this config with these weights; `weights` may be the folder they lie in.

    Reads every weight once. For a folder, the weights must fit `config`; raises `CheckpointError` as
    `open_checkpoint` does.
    """
    if isinstance(weights, Path | str):
        weights = open_checkpoint(weights).weights
    whole = blake2b(digest_size=FINGERPRINT_BYTES, person=b"foveal-model-1")
    whole.update(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for line in pool.map(lambda name: _leaf(name, weights[name]), sorted(weights)):
            whole.update(line)
    return whole.digest()


def _leaf(name: str, weight: Weight) -> bytes:
    digest = blake2b(digest_size=FINGERPRINT_BYTES)
    for part in _parts(weight):
        for chunk in _chunks(part):
            digest.update(chunk)
    return f"{name} {_format(weight)} {list(weight.shape)} {digest.hexdigest()}\n".encode()


def _parts(weight: Weight) -> tuple[Array, ...]:
    return (weight.codes, weight.scale) if isinstance(weight, Fp4Weight | Fp8Weight) else (weight,)


def _format(weight: Weight) -> str:
    if not isinstance(weight, Fp4Weight | Fp8Weight):
        return dtype_name(weight)
    scale = "float32" if weight.scale.dtype == F32 else "ue8m0"
    return f"{'fp4' if isinstance(weight, Fp4Weight) else 'fp8'}/{scale}"


def _chunks(array: Array) -> Iterator[memoryview]:
    """The bytes of an array, without copying those of a contiguous one."""
    # Flattened first: an array without axes has no byte view.
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK].data
