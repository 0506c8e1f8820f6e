"""Where a token looked, in the three ways in which it can: the raw window, CSA's picks, HCA's overview.

All numbers are shares of the token's whole attention: the masses of `foveal.cache.contract.LayerTrace`, divided by all
layers times their heads. What the three together leave to 1 went to the sinks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foveal.cache.contract import LayerTrace
from foveal.config import CSA_RATIO, HCA_RATIO
from foveal.formats import Array

Shares = npt.NDArray[np.float64]

MOST_PICKS = 48
"""Picks that are told, the heaviest first."""
MOST_BINS = 256
"""Parts in which the overview is told."""
WINDOW_STEP = 4
"""Positions of the raw window that are told together."""


@dataclass(frozen=True)
class Look:
    """Where the row at `position` looked; all positions count from the first token of the memory.

    window: shares [w] of `WINDOW_STEP` positions each, from `window_first` on.
    picks: (first token, share) of entries of `CSA_RATIO` tokens, heaviest first.
    overview: shares [b] of `overview_span` tokens each, of HCA's entries, from token 0 on.
    """

    position: int
    window_first: int
    window: Shares
    picks: tuple[tuple[int, float], ...]
    overview_span: int
    overview: Shares


def look_of(traces: Iterable[LayerTrace[Array]], position: int, heads: int) -> Look:
    """The look of the row at `position`, by the traces of all layers of `heads` heads each."""
    traces = list(traces)
    whole = heads * max(1, len(traces))
    window, first = _window(traces, position)
    picks = _summed([trace for trace in traces if trace.ratio == CSA_RATIO], position // CSA_RATIO + 1, whole)
    heaviest = np.argsort(-picks, kind="stable")[:MOST_PICKS]
    overview = _summed([trace for trace in traces if trace.ratio == HCA_RATIO], position // HCA_RATIO + 1, whole)
    together = -(-len(overview) // MOST_BINS)
    return Look(
        position=position,
        window_first=first,
        window=window / whole,
        picks=tuple((int(entry) * CSA_RATIO, float(picks[entry])) for entry in heaviest if picks[entry] > 0),
        overview_span=HCA_RATIO * together,
        overview=np.add.reduceat(overview, np.arange(0, len(overview), together)),
    )


def _window(traces: list[LayerTrace[Array]], position: int) -> tuple[Shares, int]:
    """Masses of the raw window, of `WINDOW_STEP` positions each, and the first position."""
    length = max((len(trace.window_mass) for trace in traces), default=0)
    masses = np.zeros(length)
    for trace in traces:
        masses[length - len(trace.window_mass) :] += trace.window_mass
    steps = np.arange(0, length, WINDOW_STEP)
    return (np.add.reduceat(masses, steps) if length else masses), position - length + 1


def _summed(traces: list[LayerTrace[Array]], entries: int, whole: int) -> Shares:
    """Share [entries] of each entry that these layers looked at."""
    masses = np.zeros(entries)
    for trace in traces:
        inside = trace.entries < entries
        np.add.at(masses, trace.entries[inside], trace.entry_mass[inside].astype(np.float64))
    return masses / whole
