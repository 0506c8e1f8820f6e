"""Token stores for training tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import foveal
from foveal.train.data import TokenTable

TOKENIZER = Path(foveal.__file__).parent / "weights" / "nano" / "tokenizer.json"


def write_lines(folder: Path, count: int, *, top: int = 4000) -> Path:
    """A store of `count` lines of 9 random tokens and a newline, ids 300 to `top`; what `train` is set to."""
    lines = np.random.default_rng(0).integers(300, top, (count, 10))
    lines[:, -1] = TokenTable.from_tokenizer(TOKENIZER).newline
    lines.astype(np.uint16).tofile(folder / "train.bin")
    np.save(folder / "train.idx.npy", np.array([0, lines.size]))
    return folder / "train"
