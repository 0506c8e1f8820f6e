"""`topk_lowest` of the native library against a definition in plain Python: exact, ties and odd values included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal._native import topk_lowest

INF, NAN = math.inf, math.nan


def definition(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """Sort all of it by (score descending, NaN last, column ascending) and keep the first k."""
    rows = []
    for row, count in zip(scores.tolist(), visible.tolist(), strict=True):
        seen = row[: max(0, count)]
        order = sorted(
            range(len(seen)), key=lambda c: (math.isnan(seen[c]), 0.0 if math.isnan(seen[c]) else -seen[c], c)
        )
        best = sorted(order[:k])
        rows.append(best + [-1] * (k - len(best)))
    return torch.tensor(rows, dtype=torch.int64).reshape(len(scores), k)


def visible_of(*counts: int) -> Tensor:
    return torch.tensor(counts, dtype=torch.int64)


few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -2.5, INF, -INF, NAN, 1e-45, -1e-45, 3.4e38])
any_value = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(0, 40))
    value = draw(st.sampled_from([few_values, any_value]))
    cells = draw(st.lists(value, min_size=rows * columns, max_size=rows * columns))
    visible = draw(st.lists(st.integers(-2, columns + 3), min_size=rows, max_size=rows))
    scores = torch.tensor(cells, dtype=torch.float32).reshape(rows, columns)
    return scores, torch.tensor(visible, dtype=torch.int64), draw(st.integers(0, 45))


@given(problems())
@settings(max_examples=300, deadline=None)
def test_equals_the_definition(problem: tuple[Tensor, Tensor, int]) -> None:
    scores, visible, k = problem
    chosen = topk_lowest(scores, visible, k)
    assert chosen.dtype == torch.int64
    assert torch.equal(chosen, definition(scores, visible, k))


@pytest.mark.parametrize("columns", [1, 2, 127, 129, 1000, 4097])
@pytest.mark.parametrize("k", [1, 7, 512])
def test_many_ties_at_odd_sizes(columns: int, k: int) -> None:
    generator = torch.Generator().manual_seed(columns * 1000 + k)
    scores = torch.randint(-3, 3, (9, columns), generator=generator).float()
    visible = torch.randint(0, columns + 1, (9,), generator=generator)
    assert torch.equal(topk_lowest(scores, visible, k), definition(scores, visible, k))


def test_agrees_with_torch_where_there_are_no_ties() -> None:
    scores = torch.randn(40, 5000, generator=torch.Generator().manual_seed(3))
    chosen = topk_lowest(scores, torch.full((40,), 5000), 512)
    assert torch.equal(chosen, scores.topk(512).indices.sort().values)


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 64])
def test_threads_do_not_change_the_result(threads: int) -> None:
    scores = torch.randint(0, 50, (33, 8001), generator=torch.Generator().manual_seed(4)).float()
    visible = torch.arange(33) * 250
    assert torch.equal(topk_lowest(scores, visible, 100, threads=threads), definition(scores, visible, 100))


def test_minus_infinity_goes_last_and_nan_behind_it() -> None:
    scores = torch.tensor([[NAN, -INF, 2.0, NAN, -INF, 1.0]])
    assert topk_lowest(scores, visible_of(6), 2).tolist() == [[2, 5]]
    assert topk_lowest(scores, visible_of(6), 3).tolist() == [[1, 2, 5]]
    assert topk_lowest(scores, visible_of(6), 5).tolist() == [[0, 1, 2, 4, 5]]


def test_nothing_visible_and_more_asked_than_visible() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert topk_lowest(scores, visible_of(0, 2), 4).tolist() == [[-1, -1, -1, -1], [0, 1, -1, -1]]


def test_result_outlives_its_inputs() -> None:
    chosen = topk_lowest(torch.arange(1000.0).repeat(50, 1), torch.full((50,), 1000), 3)
    for _ in range(20):
        topk_lowest(torch.zeros(50, 1000), torch.full((50,), 1000), 3)
    assert chosen.tolist() == [[997, 998, 999]] * 50


@pytest.mark.parametrize(
    ("scores", "visible", "k", "error"),
    [
        (torch.zeros(2, 3), visible_of(3), 1, ValueError),
        (torch.zeros(2, 3), visible_of(3, 3), -1, ValueError),
        (torch.zeros(2, 3, dtype=torch.float64), visible_of(3, 3), 1, TypeError),
        (torch.zeros(6), visible_of(3), 1, TypeError),
        (torch.zeros(2, 3), torch.zeros(2), 1, TypeError),
        (torch.zeros(2, 6)[:, ::2], visible_of(3, 3), 1, TypeError),
    ],
)
def test_wrong_arguments_are_refused(scores: Tensor, visible: Tensor, k: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        topk_lowest(scores, visible, k)
