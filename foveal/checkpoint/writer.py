"""Write a checkpoint in the official layout, one shard in memory at a time.

A folder is a checkpoint only once its ``config.json`` is there, and that is written last. Shards are written under
temporary names, flushed to the disk and renamed when all weights have been seen and found complete; when anything
fails, what was written is removed. An existing checkpoint is never overwritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from foveal.checkpoint.errors import CheckpointError
from foveal.checkpoint.files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from foveal.checkpoint.layout import Storage, WeightSpec, storage_format, weight_specs
from foveal.config import ModelConfig
from foveal.formats import BF16, E8M0, F16, F32, I32, I64, U8, Array, Fp4Weight, Fp8Weight, Weight, dtype_name

DEFAULT_SHARD_BYTES = 2 * 2**30

_PLAIN = (BF16, F16, F32)


def write_checkpoint(
    path: Path | str,
    config: ModelConfig,
    weights: Iterable[tuple[str, Weight]],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `weights` (official names, any order) and `config` into folder `path`, made when it is not there.

    Packed weights must have the formats `config` names; plain ones may be BF16, F16 or F32 and are written as they are.
    A shard holds at most `max_shard_bytes`, or one weight. `progress` is called with the bytes written so far.

    Raises `CheckpointError` when `path` already holds a checkpoint, or when weights are missing, unknown, mis-shaped,
    given twice or of another format; nothing is left behind then.
    """
    folder = Path(path)
    _refuse_existing(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[_Shard] = []
    try:
        _write_shards(folder, config, weights, max_shard_bytes, progress, shards)
        _name_shards(folder, shards)
        _write_text(folder / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
    except BaseException:
        for shard in shards:
            shard.file.unlink(missing_ok=True)
        (folder / INDEX_FILE).unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):  # somebody else put a file there: theirs to keep
                folder.rmdir()
        raise


class _Shard:
    """A file being written, or written: its current name and the tensors in it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.names: list[str] = []
        self.nbytes = 0

    def write(self, tensors: dict[str, Array]) -> None:
        self.file.touch()
        mode = stat.S_IMODE(self.file.stat().st_mode)
        save_file(tensors, str(self.file), metadata={"format": "pt"})
        self.file.chmod(mode)  # safetensors makes files only their owner can read; a model may be shared
        _flush(self.file)
        self.names = list(tensors)
        self.nbytes = sum(tensor.nbytes for tensor in tensors.values())


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"cannot write checkpoint {folder}", ["it is a file; name a folder"])
    there = [folder / CONFIG_FILE, folder / INDEX_FILE, *folder.glob("*.safetensors")]
    there = [file for file in there if file.exists()]
    if there:
        names = ", ".join(sorted(file.name for file in there)[:3])
        problem = f"a checkpoint is already there ({names}); name another folder or remove it first"
        raise CheckpointError(f"cannot write checkpoint {folder}", [problem])


def _write_shards(
    folder: Path,
    config: ModelConfig,
    weights: Iterable[tuple[str, Weight]],
    limit: int,
    progress: Callable[[int], None] | None,
    shards: list[_Shard],
) -> None:
    pending: dict[str, Array] = {}
    size = done = 0

    def flush() -> None:
        nonlocal pending, size, done
        shard = _Shard(folder / f".writing-{os.getpid()}-{len(shards)}.safetensors.tmp")
        shards.append(shard)
        shard.write(pending)
        done += size
        pending, size = {}, 0
        if progress is not None:
            progress(done)

    for tensors in _checked(folder, config, weights):
        added = sum(tensor.nbytes for tensor in tensors.values())
        if pending and size + added > limit:
            flush()
        pending |= tensors
        size += added
    flush()


def _checked(folder: Path, config: ModelConfig, weights: Iterable[tuple[str, Weight]]) -> Iterator[dict[str, Array]]:
    """The tensors of each weight. Faults are collected; the first one ends the yielding, the last ends the writing."""
    expected = {spec.name: spec for spec in weight_specs(config)}
    problems: list[str] = []
    seen: set[str] = set()
    for name, weight in weights:
        spec = expected.get(name)
        problem = f"{name}: not part of this model" if spec is None else _fault(config, spec, weight)
        if name in seen:
            problem = f"{name}: given twice"
        seen.add(name)
        if problem:
            problems.append(problem)
        elif spec is not None and not problems:
            yield _tensors(spec, weight)
    problems.extend(f"{name}: missing" for name in expected if name not in seen)
    if problems:
        raise CheckpointError(f"cannot write checkpoint {folder}", problems)


def _fault(config: ModelConfig, spec: WeightSpec, weight: Weight) -> str | None:
    if tuple(weight.shape) != spec.shape:
        return f"{spec.name}: has shape {list(weight.shape)}, must be {list(spec.shape)}"
    wanted = storage_format(config, spec)
    given = _format(weight, spec.storage)
    if given != (wanted if wanted in ("fp4", "fp8", "i64") else "plain"):
        return f"{spec.name}: is {given}, but the config stores it as {wanted}; use convert_weights first"
    if isinstance(weight, Fp4Weight | Fp8Weight) and wanted in ("fp4", "fp8"):
        scale = "float32" if weight.scale.dtype == F32 else "ue8m0"
        if scale != config.scale_dtype:
            return f"{spec.name}: has {scale} scales, but the config says {config.scale_dtype}"
    return None


def _format(weight: Weight, storage: Storage) -> str:
    if isinstance(weight, Fp4Weight):
        return "fp4"
    if isinstance(weight, Fp8Weight):
        return "fp8"
    if storage is Storage.I64 and weight.dtype in (I64, I32):
        return "i64"
    return "plain" if weight.dtype in _PLAIN else dtype_name(weight)


def _tensors(spec: WeightSpec, weight: Weight) -> dict[str, Array]:
    if not isinstance(weight, Fp4Weight | Fp8Weight):
        plain = weight.astype(np.int64, copy=False) if spec.storage is Storage.I64 else weight
        return {spec.name: np.ascontiguousarray(plain)}
    codes, scale = np.ascontiguousarray(weight.codes), np.ascontiguousarray(weight.scale)
    if isinstance(weight, Fp4Weight):
        codes = codes.view(np.int8)
    if scale.dtype == U8:
        scale = scale.view(E8M0)
    return {spec.name: codes, spec.scale_name: scale}


# ---------------------------------------------------------------------- naming


def _name_shards(folder: Path, shards: list[_Shard]) -> None:
    """Rename the shards to their final names; with several, write the index too."""
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard.file = shard.file.rename(folder / name)
        weight_map |= dict.fromkeys(shard.names, name)
    if len(shards) > 1:
        total = sum(shard.nbytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        _flush(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the operating system put a file, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
