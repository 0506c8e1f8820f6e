"""Who runs when: budgets in time, cuts, priorities, tenants, deadlines. The time is the test's."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from batch_support import Clock, Driven, MockNetwork, MockState, counting, ids
from hypothesis import given
from hypothesis import strategies as st

from foveal.batch import FinishReason, Kind, ParameterError, Priority, Request, SamplingParams, Scheduler
from foveal.batch.scheduler import PATIENCE

BACKGROUND = Priority.BACKGROUND
LONG = SamplingParams(max_tokens=10_000, ignore_eos=True)


def made(*, batched: bool = True, step: float = 0.02, token: float = 0.001, **settings: Any) -> tuple[Driven, Clock]:
    """An engine whose passes take `step` seconds and `token` for each of their tokens."""
    clock = Clock(step, token)
    scheduler = Scheduler(clock=clock, **{"chunk": 64, **settings})
    return Driven(MockNetwork(counting, clock=clock), scheduler=scheduler, batched=batched), clock


def reading(engine: Driven, tokens: int, **options: Any) -> Request:
    return engine.submit(MockState(), [7] * tokens, kind=Kind.READ, **{"priority": BACKGROUND, **options})


def took(engine: Driven, clock: Clock) -> float:
    before = clock.now
    engine.step()
    return clock.now - before


# ---------------------------------------------------------------------- the budget


@pytest.mark.parametrize("budget", [0.03, 0.05, 0.1])
def test_a_step_stays_within_its_budget_while_something_decodes(budget: float) -> None:
    engine, clock = made(step_budget=budget)
    short = engine.submit(MockState(), ids("a"), LONG)
    for _ in range(3):
        engine.step()
    long = reading(engine, 640)
    steps = []
    while long.finish_reason is None:
        steps.append(took(engine, clock))
    assert max(steps[2:]) <= budget, "the first steps find out what reading costs"
    assert sum(steps[2:-1]) / len(steps[2:-1]) >= 0.75 * budget, "and it is used"
    assert len(short.generated) == 3 + len(steps), "a token in every step"


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
def test_a_machine_whose_steps_are_often_late_reads_less(noise: float) -> None:
    """Of a hundred steps about one takes longer than a fifth beyond the budget, however much they wander."""
    engine, clock = made(step=0.002, token=0.001, chunk=512, step_budget=0.05)
    engine.submit(MockState(), ids("a"), LONG)
    long = reading(engine, 90_000)
    dice, steps = random.Random(7), []
    while long.finish_reason is None:
        factor = dice.lognormvariate(0.0, noise)
        clock.step, clock.token = 0.002 * factor, 0.001 * factor
        steps.append(took(engine, clock))
    settled = sorted(steps[300:])
    assert settled[int(0.98 * len(settled))] <= 1.2 * 0.05
    assert sum(settled) / len(settled) >= (0.8, 0.65, 0.55)[int(10 * noise)] * 0.05


def test_the_default_budget_is_twice_a_token_and_at_least_50_ms() -> None:
    engine, clock = made(step=0.2)
    engine.submit(MockState(), ids("a"), LONG)
    for _ in range(20):
        engine.step()
    assert engine.scheduler.budget() == pytest.approx(0.402, rel=0.02)
    reading(engine, 2000)
    assert max(took(engine, clock) for _ in range(20)) <= 0.402
    quick, _ = made(step=0.001)
    quick.submit(MockState(), ids("a"), LONG)
    for _ in range(20):
        quick.step()
    assert quick.scheduler.budget() == 0.05


def test_whole_chunks_are_read_when_nothing_decodes() -> None:
    engine, clock = made(step_budget=0.001)
    long = reading(engine, 300)
    ran = [event.ran for event in engine.events(long)]
    assert ran == [64, 64, 64, 64, 44]
    assert took(engine, clock) == 0, "nothing is left to do"


def test_reading_goes_on_when_decoding_takes_all_the_time() -> None:
    engine, _ = made(step=0.2, step_budget=0.05)
    engine.submit(MockState(), ids("a"), LONG)
    for _ in range(10):
        engine.step()
    long = reading(engine, 100)
    for _ in range(110):
        engine.step()
    assert long.finish_reason is FinishReason.DONE


@given(
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=6),
    st.sampled_from([0.001, 0.03, 0.05, 1.0]),
    st.integers(1, 64),
)
def test_without_invariance_cuts_are_fixed_whatever_the_load(
    shapes: list[tuple[int, bool]], budget: float, chunk: int
) -> None:
    engine, _ = made(batched=False, step_budget=budget, chunk=chunk)
    for size, decodes in shapes:
        kind = Kind.GENERATE if decodes else Kind.READ
        engine.submit(MockState(), [7] * size, SamplingParams(max_tokens=5, ignore_eos=True), kind=kind)
    while engine.scheduler.busy:
        assert engine.step()
    network = engine.network
    assert isinstance(network, MockNetwork)
    for (start, count), *others in network.passes:
        assert not others
        assert count == 1 or start % chunk == 0
        assert start // chunk == (start + count - 1) // chunk


class Tailed(MockState):
    """A state that keeps tails where a step passes a multiple of `tail_every`."""

    tail_every = 100


def test_a_state_that_keeps_tails_between_the_cuts_is_not_cut_elsewhere() -> None:
    engine, _ = made(step_budget=0.03)
    engine.submit(MockState(), ids("a"), LONG)
    for _ in range(3):
        engine.step()
    long = engine.submit(Tailed(), [7] * 200, kind=Kind.READ)
    assert [event.ran for event in engine.events(long)] == [64, 64, 64, 8]


# ---------------------------------------------------------------------- priorities


def test_an_interactive_prompt_goes_before_background_reading() -> None:
    engine, _ = made(step_budget=0.05)
    book = reading(engine, 5000)
    engine.step()
    before = book.read
    question = engine.submit(MockState(), ids("abc"), SamplingParams(max_tokens=3))
    engine.step()
    assert len(question.generated) == 1 and book.read == before


def test_background_work_does_not_starve() -> None:
    engine, clock = made(chunk=64)
    book = reading(engine, 64)
    start = clock.now
    while book.finish_reason is None:
        engine.submit(MockState(), [7] * 2000, SamplingParams(max_tokens=1))  # ever more that is urgent
        engine.step()
    assert PATIENCE <= clock.now - start <= PATIENCE + 1


def test_background_requests_keep_no_interactive_one_out() -> None:
    engine, _ = made(max_running=2)
    for _ in range(5):
        engine.submit(MockState(), ids("a"), LONG, priority=BACKGROUND)
    engine.step()
    urgent = engine.submit(MockState(), ids("a"), LONG)
    engine.step()
    assert urgent.generated


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    engine, _ = made(step_budget=0.05)
    engine.submit(MockState(), ids("a"), LONG)
    for _ in range(3):
        engine.step()
    long = engine.submit(MockState(), [7] * 2000, LONG)
    for _ in range(3):
        engine.step()
    short = engine.submit(MockState(), [7] * 10, LONG)
    engine.step()
    assert short.generated and not long.generated


def test_short_prompts_do_not_starve_a_long_one() -> None:
    engine, clock = made()
    long = engine.submit(MockState(), [7] * 65, SamplingParams(max_tokens=1))
    while not long.read:
        for _ in range(8):
            engine.submit(MockState(), [7] * 64, SamplingParams(max_tokens=1))
        engine.step()
    assert clock.now <= PATIENCE + 1


def test_requests_for_one_state_run_one_after_the_other() -> None:
    engine, _ = made()
    state = MockState()
    texts = ["ab", "cd", "ef"]
    requests = [engine.submit(state, ids(text), kind=Kind.READ) for text in texts]
    while engine.scheduler.busy:
        engine.step()
    assert state.tokens == ids("abcdef") and all(r.finish_reason is FinishReason.DONE for r in requests)


# ---------------------------------------------------------------------- tenants


def test_tenants_get_equal_shares_whatever_they_ask_for() -> None:
    """One tenant has eight long texts to read, the other one: both are read at the same speed."""
    engine, _ = made(step_budget=0.05, max_running=64)
    engine.submit(MockState(), ids("a"), LONG)
    many = [reading(engine, 4000, tenant="many") for _ in range(8)]
    one = reading(engine, 4000, tenant="one")
    for _ in range(150):
        engine.step()
    ran = {name: sum(r.read for r in rs) for name, rs in (("many", many), ("one", [one]))}
    assert ran["one"] == pytest.approx(ran["many"], rel=0.1)


def test_who_comes_late_has_no_claim_to_what_was_served_before() -> None:
    engine, _ = made()
    first = reading(engine, 4000, tenant="first")
    for _ in range(30):
        engine.step()
    before = first.read
    late = reading(engine, 4000, tenant="late")
    engine.submit(MockState(), ids("a"), LONG)
    for _ in range(60):
        engine.step()
    assert late.read == pytest.approx(first.read - before, rel=0.25)


# ---------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("stage", ["waiting", "prompt", "decoding"])
def test_a_deadline_ends_a_request_at_any_stage(stage: str) -> None:
    engine, clock = made(max_running=1)
    if stage == "waiting":
        engine.submit(MockState(), ids("a"), LONG)
    prompt = [7] * (1000 if stage == "prompt" else 2)
    timed = engine.submit(MockState(), prompt, LONG, deadline=0.1)
    kept = engine.kept(timed)
    while timed.finish_reason is None:
        assert engine.step() or timed.finish_reason
    assert 0.1 <= clock.now < 0.3
    assert kept[-1].finish_reason is FinishReason.DEADLINE and kept[-1].error is None
    assert bool(timed.generated) == (stage == "decoding")
    assert timed not in engine.scheduler.requests()


def test_settings_that_make_no_sense() -> None:
    for name, value in itertools.product(("chunk", "max_running"), (0, -1)):
        with pytest.raises(ParameterError, match=name):
            Scheduler(**{name: value})  # type: ignore[arg-type]
    for budget in (0, -1.0, float("nan")):
        with pytest.raises(ParameterError, match="step_budget"):
            Scheduler(step_budget=budget)
