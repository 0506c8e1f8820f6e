"""Where the lines of an earlier version of a text are in a later one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def follow_lines(old: Sequence[str], new: Sequence[str]) -> npt.NDArray[np.int32]:
    """For each line of `old` the line of `new`, counted from 1, that it still is; 0 where it was changed or is gone.

    Lines are the same when their texts are, line ends apart. Equal lines at both ends cost nothing.
    """
    before, after = ([line.rstrip("\r\n") for line in lines] for lines in (old, new))
    places = np.zeros(len(before), dtype=np.int32)
    shorter = min(len(before), len(after))
    head = next((n for n in range(shorter) if before[n] != after[n]), shorter)
    room = shorter - head
    tail = next((n for n in range(room) if before[-1 - n] != after[-1 - n]), room)
    places[:head] = np.arange(1, head + 1)
    if tail:
        places[-tail:] = np.arange(len(after) - tail + 1, len(after) + 1)
    matcher = difflib.SequenceMatcher(None, before[head : len(before) - tail], after[head : len(after) - tail])
    for a, b, size in matcher.get_matching_blocks():
        places[head + a : head + a + size] = np.arange(head + b + 1, head + b + size + 1)
    return places
