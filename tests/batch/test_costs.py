"""What a token costs: learned from made-up steps whose costs are known."""

from __future__ import annotations

import random

import pytest

from foveal.batch.costs import Costs, Fit


def decoding(depths: list[int]) -> float:
    return 0.001 + 0.0004 * len(depths) + 2e-9 * sum(depths)


def reading(depth: int, count: int) -> float:
    return 1e-4 * count + 1e-9 * count * depth


def test_nothing_is_known_in_the_beginning() -> None:
    costs = Costs()
    assert not costs.knows_reading and not costs.knows_decoding
    assert costs.of_decoding([5]) == costs.of_reading(0, 100) == 0.0


def test_decoding_and_reading_are_told_apart() -> None:
    costs, dice = Costs(), random.Random(1)
    for _ in range(200):
        depths = [dice.randrange(100_000) for _ in range(dice.randrange(1, 9))]
        costs.learn(depths, [], decoding(depths))
        depth, count = dice.randrange(100_000), dice.randrange(16, 512)
        costs.learn(depths, [(depth, count)], decoding(depths) + reading(depth, count))
    for depths in ([10], [50_000] * 4, [0, 90_000]):
        assert costs.of_decoding(depths) == pytest.approx(decoding(depths), rel=0.02)
    for depth in (0, 30_000, 90_000):
        assert costs.of_reading(depth, 256) == pytest.approx(reading(depth, 256), rel=0.02)
        fitting = costs.tokens_within(depth, 0.03, 512)
        assert reading(depth, fitting) == pytest.approx(0.03, rel=0.03)
    assert costs.tokens_within(0, 10.0, 512) == 512 and costs.tokens_within(0, 0.0, 512) == 0


def test_only_one_sequence_was_ever_seen() -> None:
    """Its fixed cost and its token's cannot be told apart, and need not be."""
    costs = Costs()
    for step in range(50):
        costs.learn([1000 + step], [], 0.02)
    assert costs.of_decoding([1050]) == pytest.approx(0.02, rel=0.01)


def test_what_is_known_of_reading_outlives_a_long_answer() -> None:
    costs = Costs()
    for step in range(30):
        costs.learn([], [(512 * step, 512)], reading(512 * step, 512))
    for step in range(5000):
        costs.learn([step], [], 0.0014)
    assert costs.of_reading(4096, 512) == pytest.approx(reading(4096, 512), rel=0.05)


def test_it_follows_when_the_machine_gets_slower() -> None:
    costs = Costs()
    for _ in range(100):
        costs.learn([100], [], 0.001)
    for _ in range(150):
        costs.learn([100], [], 0.010)
    assert costs.of_decoding([100]) == pytest.approx(0.010, rel=0.1)


def test_one_pause_changes_little() -> None:
    costs = Costs()
    for seconds in (*[0.001] * 64, 5.0, *[0.001] * 32):
        costs.learn([100], [], seconds)
    assert costs.of_decoding([100]) == pytest.approx(0.001, rel=0.05)


def test_small_pieces_in_noisy_steps_say_little() -> None:
    """A token or two beside decoding whose time varies: what was known of reading stays."""
    costs, dice = Costs(), random.Random(2)
    for step in range(40):
        costs.learn([], [(512 * step, 512)], reading(512 * step, 512))
        costs.learn([100], [], 0.024 * dice.uniform(0.9, 1.2))
    for _ in range(300):
        costs.learn([100], [(1000, 2)], 0.024 * dice.uniform(0.9, 1.2) + reading(1000, 2))
    assert costs.of_reading(1000, 256) == pytest.approx(reading(1000, 256), rel=0.5)


def test_the_first_piece_was_one_token() -> None:
    """What a step takes anyway is not taken for the price of a token, and longer pieces are tried step by step."""
    costs = Costs()
    costs.learn([], [(0, 1)], 0.020 + reading(0, 1))
    assert not costs.knows_reading
    for _ in range(3):
        costs.learn([10], [], 0.020)
    costs.learn([10], [(0, 1)], 0.020 + reading(0, 1))
    lengths = []
    for _ in range(8):
        count = costs.tokens_within(500, 0.025, 512)
        lengths.append(count)
        costs.learn([10], [(500, count)], 0.020 + reading(500, count))
    assert lengths[:4] == [4, 16, 64, 248] and lengths[-1] == pytest.approx(249, abs=3)


def test_no_cost_is_negative() -> None:
    fit = Fit(2)
    for count, seconds in ((1, 0.010), (2, 0.008), (4, 0.004)) * 10:
        fit.learn([1.0, float(count)], seconds, seconds, 0.03)
    assert min(fit.coefficients) >= 0 and fit.predict([1.0, 3.0]) > 0
