"""Where a token looked, as shares of each kind of layer."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.cache.contract import LayerTrace
from foveal.formats import Array
from foveal.memory.looks import MOST_BINS, MOST_PICKS, WINDOW_STEP, look_of

HEADS = 2


def trace(ratio: int, entries: dict[int, float], window: list[float]) -> LayerTrace[Array]:
    chosen = np.array(list(entries), dtype=np.int64)
    masses = np.array(list(entries.values()), dtype=np.float32)
    return LayerTrace(0, 0, ratio, chosen, masses, np.array(window, dtype=np.float32))


def test_shares_are_of_all_attention() -> None:
    traces = [
        trace(0, {}, [1, 1]),
        trace(4, {5: 1.0, 2: 0.5}, [0, 0.5]),
        trace(4, {5: 1.0}, [0, 0]),
        trace(128, {1: 0.5}, []),
    ]
    look = look_of(traces, 300, HEADS)
    assert look.picks == ((20, 0.25), (8, 0.0625))  # masses 2.0 and 0.5 of four layers with two heads
    assert look.overview.tolist() == [0, 0.0625, 0] and look.overview_span == 128
    assert (look.window_first, look.window.tolist()) == (299, [2.5 / (HEADS * 4)])


def test_a_long_memory_is_told_in_few_numbers() -> None:
    position = 1 << 20
    picks = {entry: 1.0 + entry for entry in range(MOST_PICKS + 9)}
    traces = [trace(4, picks, [0.25] * 128), trace(128, {s: 1e-4 for s in range(position // 128)}, [0.25] * 128)]
    look = look_of(traces, position, HEADS)
    assert len(look.picks) == MOST_PICKS and look.picks[0][0] == 4 * (MOST_PICKS + 8)
    assert len(look.overview) <= MOST_BINS and len(look.window) == 128 // WINDOW_STEP
    assert look.overview.sum() == pytest.approx(1e-4 * (position // 128) / (2 * HEADS))
    assert look.overview_span * len(look.overview) > position


def test_no_layer_of_a_kind_is_no_share() -> None:
    look = look_of([trace(0, {}, [1])], 0, HEADS)
    assert look.picks == () and look.overview.tolist() == [0] and look.window.tolist() == [0.5]
