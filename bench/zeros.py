"""What it is worth not to read blocks of zeros: ``python bench/zeros.py MODEL [--threads 1] [--tokens 512]``.

Reads and decodes with a model once as it is and once with all zeros read, in turn, in one process, and prints tokens a
second of CPU time (and of the clock, which says little on a busy machine), and whether the same tokens came out.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np

from foveal import Engine, _native
from foveal.backends.cpu import layers, packing

_DECODED = 24


def measured(folder: Path, threads: int, count: int, *, skip_zeros: bool) -> tuple[tuple[int, ...], str]:
    """The tokens that were decoded, and a line."""
    packing._known.clear()
    layers._matrix = partial(_matrix, skip_zeros=skip_zeros)
    engine = Engine.open(folder, threads=threads)
    tokens = np.random.default_rng(0).integers(3, 20_000, count).tolist()
    run = partial(engine.generate, tokens, temperature=0.0, ignore_eos=True)
    run(max_tokens=1)
    marks = [(time.process_time(), time.monotonic())]
    for length in (1, 1 + _DECODED):
        found = run(max_tokens=length).tokens
        marks.append((time.process_time(), time.monotonic()))
    rates = []
    for clock in (0, 1):
        reading = marks[1][clock] - marks[0][clock]
        decoding = marks[2][clock] - marks[1][clock] - reading
        rates.append(f"reading {count / reading:.0f}, decoding {_DECODED / decoding:.1f} tok/s")
    name = "zeros skipped" if skip_zeros else "all read"
    return tuple(found), f"{name:14} CPU time: {rates[0]}; clock: {rates[1]}"


def _matrix(weights: layers.Weights, name: str, *, skip_zeros: bool) -> _native.Matrix:
    return packing.native_matrix(weights[f"{name}.weight"], skip_zeros=skip_zeros)


def main() -> None:
    """Two runs of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    chosen = parser.parse_args()
    said: set[tuple[int, ...]] = set()
    for skip_zeros in (False, True, False, True):
        tokens, line = measured(chosen.model, chosen.threads, chosen.tokens, skip_zeros=skip_zeros)
        said.add(tokens)
        print(line, flush=True)
    print("the same tokens" if len(said) == 1 else "DIFFERENT TOKENS")


if __name__ == "__main__":
    main()
