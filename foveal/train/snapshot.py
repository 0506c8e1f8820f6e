"""Checkpoints of a run: parameters, optimiser and position, in one folder that is whole or not there.

What is special here: a folder is written under another name, flushed to the disk, and then renamed; only the newest
few are kept. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_STEP = re.compile(r"step-(\d{8})$")


class SnapshotError(ValueError):
    """A checkpoint folder cannot be read or does not fit the run."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps and tokens done, and the seconds of training they took (over all restarts)."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint folder holds. `config` is the network's ``config.json``."""

    position: Position
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    config: dict[str, object]


def save(
    folder: Path,
    position: Position,
    parameters: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    config: Mapping[str, object],
    *,
    keep: int = 2,
) -> Path:
    """Write ``folder/step-NNNNNNNN`` and drop all but the newest `keep`. Returns its path."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = folder / f"step-{position.step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    save_file(_plain(parameters), partial / "parameters.safetensors")
    save_file(_plain(optimizer), partial / "optimizer.safetensors")
    (partial / "config.json").write_text(json.dumps(dict(config), indent=1), encoding="utf-8")
    (partial / "position.json").write_text(json.dumps(asdict(position)), encoding="utf-8")
    for path in partial.iterdir():
        _flush(path)
    _flush(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _flush(folder)
    for old in all_in(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STEP.match(path.name))


def load(path: Path) -> Snapshot:
    """Read one checkpoint folder. Raises `SnapshotError` when a file is missing or damaged."""
    try:
        position = Position(**json.loads((path / "position.json").read_text(encoding="utf-8")))
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        parameters = load_file(path / "parameters.safetensors")
        optimizer = load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise SnapshotError(f"cannot read the training checkpoint {path}: {error}") from error
    return Snapshot(position, parameters, optimizer, config)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
