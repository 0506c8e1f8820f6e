"""How answers are scored, and how sure one can be of a mean.

RULER's score is whether the reference stands in the answer, letter case aside, averaged over the references (RULER,
section 3). Intervals are Wilson's at 95 %: for a share they are the usual ones, for scores between 0 and 1 they are on
the safe side (no distribution on [0, 1] with that mean varies more than a coin), and they do not shrink to nothing at 0
and 1. They take samples for independent, which samples of one text are not quite.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from statistics import fmean, stdev

from foveal.text import Tokenizer

_Z = 1.959964


def holds_all(text: str, references: Sequence[str]) -> float:
    """Share of the references that stand in `text`, letter case aside (RULER's ``string_match_all``)."""
    said = text.lower()
    return fmean(reference.lower() in said for reference in references)


def likeness(text: str, reference: str) -> float:
    """How like two texts are, 0 to 1: matching characters of both over all (MRCR's score)."""
    return difflib.SequenceMatcher(None, text, reference, autojunk=False).ratio()


def tokens_right(got: Sequence[int], expected: Sequence[int]) -> tuple[float, int]:
    """Share of `expected` that stands in `got` at the same place, and the place of the first that does not."""
    right = [i < len(got) and got[i] == token for i, token in enumerate(expected)]
    return (sum(right) / len(right) if right else 0.0), right.index(False) if False in right else len(right)


def tokens_after(tokenizer: Tokenizer, cue: str, following: str, count: int) -> tuple[int, ...]:
    """The first `count` tokens of ``cue + following`` from the one on in which the cue's end lies (or that begins
    there)."""
    whole = tokenizer.encode(cue + following)
    passed, size = 0, len(cue.encode("utf-8", "surrogatepass"))
    for place, token in enumerate(whole):
        passed += len(tokenizer.token_bytes(token))
        if passed > size:
            return tuple(whole[place : place + count])
    return ()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean: Wilson's for scores within 0 and 1, mean and standard error otherwise."""
    mean, count = fmean(values), len(values)
    if any(not 0 <= value <= 1 for value in values):
        half = _Z * stdev(values) / math.sqrt(count) if count > 1 else math.inf
        return mean - half, mean + half
    spread = _Z * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    centre, scale = mean + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
