"""Where a saved llama.cpp state was never written, and something to put there.

The state is not taken apart. A compressed cache that was jumped over is a run of zeros of a known length behind a
header of a known form, and a model's caches are few: it is enough to look for those.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def fill_blanks(state: np.ndarray[Any, np.dtype[np.uint8]], blanks: list[tuple[int, int]]) -> int:
    """Put random normal f16 values where a saved state has rows that were never written; returns how many places.

    `blanks`: (rows, bytes of a row) of each kind of cache. A cache's rows stand right behind the bytes of a row, as
    eight bytes, little end first, whose upper ones are zero as well.
    """
    generator = np.random.default_rng(0)
    bank = generator.standard_normal(1 << 20).astype(np.float16).view(np.uint8)
    zero = np.concatenate(([False], state == 0, [False]))
    edges = np.flatnonzero(zero[1:] != zero[:-1]).reshape(-1, 2)
    filled = 0
    for rows, row_bytes in blanks:
        size, header = rows * row_bytes, 8 - (row_bytes.bit_length() + 7) // 8
        runs = edges[:, 1] - edges[:, 0]
        # A few bytes more: the first row that was written may begin with zeros.
        for first in edges[(runs >= size + header) & (runs < size + header + 8), 0]:
            for begin in range(0, size, len(bank)):
                turned = np.roll(bank, 2 * int(generator.integers(len(bank) // 2)))
                part = slice(first + header + begin, first + header + min(size, begin + len(bank)))
                state[part] = turned[: part.stop - part.start]
            filled += 1
    return filled
