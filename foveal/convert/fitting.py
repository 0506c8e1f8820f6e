"""What is fitted to text: the second moment E x x^T of every sub-layer's input.

It decides which rotary pairs carry what (`foveal.convert.rotary`), how rows are scaled, and where rounding errors may
go (`foveal.convert.rounding`). Sums are kept in a folder
after every few rows, so that a fit that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.convert.llama import Hook, Llama, Part

_SAVE_EVERY = 8
_FILE = "moments.safetensors"


@dataclass(frozen=True)
class Moments:
    """E x x^T of each layer's normed inputs, norm weights not applied: [layers, d, d] each."""

    attention: Tensor
    feed_forward: Tensor


def fit_moments(
    network: Llama,
    rows: Tensor,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None] | None = None,
) -> Moments:
    """The moments over the tokens of `rows` [n, T]. `progress(done, total)` is called after each row.

    What was summed is in `folder`, under `identity` (of source and rows); the same call goes on from there.
    """
    sums, done = _load(folder / _FILE, identity, network)
    for number in range(done, len(rows)):
        network.hidden(rows[number : number + 1], _adding(sums))
        if (number + 1) % _SAVE_EVERY == 0 or number + 1 == len(rows):
            _save(folder / _FILE, identity, sums, number + 1)
        if progress is not None:
            progress(number + 1, len(rows))
    return Moments(*(sums / (len(rows) * rows.shape[1])))


def _adding(sums: Tensor) -> Hook:
    def add(part: Part, layer: int, x: Tensor) -> None:
        flat = x.flatten(0, 1)
        sums[int(part == "feed_forward"), layer].addmm_(flat.T, flat)

    return add


def _load(path: Path, identity: str, network: Llama) -> tuple[Tensor, int]:
    s = network.shape
    begin = torch.zeros(2, s.layers, s.hidden_size, s.hidden_size), 0
    if not path.is_file():
        return begin
    try:
        found = load_file(path)
    except (OSError, SafetensorError):  # not worth more than the minutes it took
        return begin
    name = bytes(found["identity"].tolist()).decode()
    return (found["sums"], int(found["rows"])) if name == identity else begin


def _save(path: Path, identity: str, sums: Tensor, rows: int) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = torch.tensor(list(identity.encode()), dtype=torch.uint8)
    writing = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"sums": sums, "rows": torch.tensor(rows), "identity": name}, writing)
    os.replace(writing, path)
