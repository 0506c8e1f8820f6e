"""Checkpoints of a run: parameters, optimiser and position, in one folder that is whole or not there.

A folder is written under another name, flushed to the disk, and then renamed; only the newest few are kept. Whole
tensors are written, whatever number of processes made them. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.errors import FovealError

_POSITION = "position.json"
_ROUTING = "routing.safetensors"
_RECORD = "run.json"
_STEP = re.compile(r"(?:step-(\d{8})|\.step-(\d{8})\.old)$")
"""A checkpoint's folder; the second while another of the same step takes its place."""


class SnapshotError(FovealError, ValueError):
    """A checkpoint folder cannot be read or does not fit the run."""

    code = "invalid_request"


class DamagedError(SnapshotError):
    """A file of a checkpoint is missing or damaged."""

    code = "damaged"


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps and tokens done, and the seconds of training they took (over all restarts)."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint folder holds. `config` is the network's ``config.json``; `means` what the curve had gathered
    since its last row; `routing` what anticipatory routing goes on with (`foveal.train.anticipation`); `record` what
    the run was made of (`foveal.train.record`; empty in checkpoints of older versions)."""

    position: Position
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    config: dict[str, object]
    means: dict[str, list[float]] = field(default_factory=dict)
    routing: dict[str, Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


@contextmanager
def private() -> Iterator[None]:
    """Files made meanwhile are readable by their owner only (0600, folders 0700)."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def save(folder: Path, saved: Snapshot, *, keep: int = 2) -> Path:
    """Write ``folder/step-NNNNNNNN`` and drop all but the newest `keep` (1 or more). Returns its path.

    Whenever this is interrupted, the checkpoints that were there before can be read, or the new one.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = folder / f"step-{saved.position.step:08d}"
    partial = folder / f".{final.name}.partial"
    for left in folder.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    with private():
        partial.mkdir()
        save_file(_plain(saved.parameters), partial / "parameters.safetensors")
        save_file(_plain(saved.optimizer), partial / "optimizer.safetensors")
        if saved.routing:
            save_file(_plain(saved.routing), partial / _ROUTING)
        (partial / "config.json").write_text(json.dumps(dict(saved.config), indent=1), encoding="utf-8")
        if saved.record:
            (partial / _RECORD).write_text(json.dumps(saved.record, indent=1), encoding="utf-8")
        position = asdict(saved.position) | {"means": saved.means}
        (partial / _POSITION).write_text(json.dumps(position), encoding="utf-8")
    for path in partial.iterdir():
        path.chmod(0o600)
        _flush(path)
    _flush(partial)
    aside = folder / f".{final.name}.old"
    if final.exists():
        if aside.exists():
            shutil.rmtree(aside)
        final.rename(aside)
    partial.rename(final)
    _flush(folder)
    kept = all_in(folder)[-keep:]
    for old in [*folder.glob(".step-*.old"), *all_in(folder)]:
        if old not in kept:
            shutil.rmtree(old)
    return final


def is_one(path: Path) -> bool:
    """Whether `path` is a checkpoint's folder."""
    return (path / _POSITION).is_file()


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    found: dict[str, Path] = {}
    # Those put aside come first: they count only where nothing took their place.
    for path in sorted(folder.iterdir()):
        named = _STEP.match(path.name)
        if named is not None:
            found[named[1] or named[2]] = path
    return [found[step] for step in sorted(found)]


def load(path: Path) -> Snapshot:
    """Read one checkpoint folder. Raises `DamagedError` when a file is missing or damaged."""
    try:
        about = json.loads((path / _POSITION).read_text(encoding="utf-8"))
        means = about.pop("means", {})
        position = Position(**about)
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        parameters = load_file(path / "parameters.safetensors")
        optimizer = load_file(path / "optimizer.safetensors")
        routing = load_file(path / _ROUTING) if (path / _ROUTING).is_file() else {}
        record = json.loads((path / _RECORD).read_text(encoding="utf-8")) if (path / _RECORD).is_file() else {}
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise DamagedError(f"cannot read the training checkpoint {path}: {error}") from error
    return Snapshot(position, parameters, optimizer, config, means, routing, record)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
