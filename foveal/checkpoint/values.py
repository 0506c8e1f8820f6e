"""What the entries of a checkpoint's tensors may be: indices that lie in their tables, numbers that are finite.

Small tensors, block scales, the embedding, the head and all that belongs to the indexer are always looked through: a
wrong number in a router or an indexer changes choices only, and nothing later would tell. Of the large matrices' codes
only small models' are; a NaN in one of them makes the first tokens that meet it fail (`foveal.model.finite`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from foveal.checkpoint.files import StoredTensor
from foveal.checkpoint.layout import Storage, WeightSpec
from foveal.config import ModelConfig
from foveal.formats import BF16, E4M3, E8M0, F16, F32, U8, Array, DType

CODES_UP_TO = 1 << 28
"""Bytes of large matrices that are looked through as well; checkpoints with more have only the rest looked through."""

_CHUNK = 1 << 18
_LET_GO = 1 << 24
_WORTH_THREADS = 1 << 26

# Bytes of an entry, the bits that say how large it is, and the first of those that is no finite number.
_FINITE: dict[DType, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    BF16: (np.uint16, 0x7FFF, 0x7F80),
    F16: (np.uint16, 0x7FFF, 0x7C00),
    F32: (np.uint32, 0x7FFFFFFF, 0x7F800000),
    E4M3: (np.uint8, 0x7F, 0x7F),
    E8M0: (np.uint8, 0xFF, 0xFF),
}

Weights = Mapping[WeightSpec, Sequence[StoredTensor]]
"""Each weight that is there, and the tensors it is made of: itself, or codes and scale."""


def wrong_values(config: ModelConfig, weights: Weights) -> list[str]:
    """What is wrong in the entries of `weights`: one line a tensor."""
    jobs = [*_jobs(config, weights)]
    if sum(tensor.nbytes for tensor, _, _ in jobs) < _WORTH_THREADS:
        faults = [_fault(*job) for job in jobs]
    else:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            faults = [*pool.map(lambda job: _fault(*job), jobs)]
    return [fault for fault in faults if fault is not None]


def _jobs(config: ModelConfig, weights: Weights) -> Iterator[tuple[StoredTensor, DType, int]]:
    """Each tensor to look through, its entries' type, and for a table how many rows it may point to (else 0)."""
    large = [codes for spec, (codes, *_) in weights.items() if _is_large(spec)]
    all_of_them = sum(codes.nbytes for codes in large) <= CODES_UP_TO
    for spec, (tensor, *scales) in weights.items():
        if spec.storage is Storage.I64:
            yield tensor, tensor.dtype, config.n_routed_experts
        elif tensor.dtype in _FINITE and (all_of_them or not _is_large(spec)):
            yield tensor, tensor.dtype, 0
        for scale in scales:
            yield scale, E8M0 if scale.dtype == U8 else scale.dtype, 0


def _is_large(spec: WeightSpec) -> bool:
    return spec.storage in (Storage.LINEAR, Storage.EXPERT) and ".indexer." not in spec.name


def _fault(tensor: StoredTensor, dtype: DType, rows: int) -> str | None:
    values = tensor.load()
    try:
        return _outside(tensor.name, values, rows) if rows else _not_finite(tensor.name, values, dtype)
    finally:
        _let_go(values)


def _outside(name: str, table: Array, rows: int) -> str | None:
    wrong = (table < 0) | (table >= rows)
    if not bool(wrong.any()):
        return None
    place = [int(axis) for axis in np.argwhere(wrong)[0]]
    value = int(table[tuple(place)])
    count = f"{int(wrong.sum())} of {table.size} entries"
    return f"{name}: {count} name no expert (0 to {rows - 1}), the first is {value} at {place}"


def _not_finite(name: str, values: Array, dtype: DType) -> str | None:
    kind, mask, limit = _FINITE[dtype]
    flat = np.ascontiguousarray(values).reshape(-1).view(kind)
    wrong, first = 0, -1
    for start in range(0, len(flat), _CHUNK):
        sizes = flat[start : start + _CHUNK] & kind(mask)
        if sizes.max() >= limit:
            places = np.flatnonzero(sizes >= limit)
            first = start + int(places[0]) if first < 0 else first
            wrong += len(places)
    if not wrong:
        return None
    place = [int(axis) for axis in np.unravel_index(first, tuple(values.shape))]
    return f"{name}: {wrong} of {len(flat)} entries are not finite (NaN or infinite), the first at {place}"


def _let_go(values: Array) -> None:
    """Let the system take back the memory of a large mapped tensor that was only looked through."""
    start, end = values.ctypes.data, values.ctypes.data + values.nbytes
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end - start >= _LET_GO:
        with suppress(OSError, AttributeError):  # a hint: where there is no such call, nothing is lost
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
