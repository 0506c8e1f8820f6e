"""The engine with a network whose next token is known: scheduling, stopping, sampling, cancelling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from batch_support import TINY, Clock, Driven, Letters, MockNetwork, MockState, counting, finish, ids
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.batch import (
    BadLogitsError,
    FinishReason,
    ParameterError,
    SamplingParams,
    Scheduler,
    next_cut,
    sample,
)
from foveal.batch.sampler import uniform

# ---------------------------------------------------------------------- stopping


def test_max_tokens_ends_with_length_and_state_lacks_only_the_last_token() -> None:
    engine = Driven(MockNetwork(counting))
    state = MockState()
    request = engine.submit(state, ids("ab"), SamplingParams(max_tokens=5))
    events, _, tokens = finish(engine, request)
    assert tokens == ids("cdefg") and request.generated == tokens
    assert [e.finish_reason for e in events] == [None] * 4 + [FinishReason.LENGTH]
    assert state.tokens == ids("abcdef")
    assert not engine.scheduler.busy


@pytest.mark.parametrize("chunk", [1, 2, 3, 512])
def test_stop_string_across_tokens(chunk: int) -> None:
    engine = Driven(MockNetwork(counting), scheduler=Scheduler(chunk=chunk))
    request = engine.submit(MockState(), ids("ab"), SamplingParams(stop=("fgh", "zz")), text=Letters(("fgh", "zz")))
    events, text, tokens = finish(engine, request)
    assert text == "cde"
    assert tokens == ids("cdefgh"), "tokens that completed the stop string are reported"
    assert events[-1].finish_reason is FinishReason.STOP
    assert "f" not in "".join(e.text for e in events)


def test_text_held_back_for_a_stop_string_comes_out_in_the_end() -> None:
    engine = Driven(MockNetwork(counting))
    request = engine.submit(MockState(), ids("b"), SamplingParams(stop=("efX",), max_tokens=4), text=Letters(("efX",)))
    _, text, _ = finish(engine, request)
    assert text == "cdef"


def test_stop_token_and_eos_are_not_output() -> None:
    engine = Driven(MockNetwork(counting))
    request = engine.submit(MockState(), ids("a"), SamplingParams(stop_tokens=(4 + ord("d"),)))
    events, _, tokens = finish(engine, request)
    assert tokens == ids("bc") and request.generated == tokens
    assert events[-1].finish_reason is FinishReason.STOP and not events[-1].is_output

    eos = TINY.eos_token_id
    engine = Driven(MockNetwork(lambda history: eos))
    assert finish(engine, engine.submit(MockState(), [7]))[2] == []
    kept = engine.submit(MockState(), [7], SamplingParams(ignore_eos=True, max_tokens=3))
    assert finish(engine, kept)[2] == [eos] * 3


# ---------------------------------------------------------------------- scheduling


@given(st.integers(1, 3000), st.integers(0, 2000), st.integers(1, 600))
def test_cuts_are_at_absolute_multiples(total: int, position: int, chunk: int) -> None:
    left, cuts = total, []
    while left:
        size = next_cut(position, left, chunk)
        assert 1 <= size <= chunk
        position, left = position + size, left - size
        cuts.append(position)
    assert all(cut % chunk == 0 for cut in cuts[:-1])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20), st.integers(1, 6)), min_size=1, max_size=7),
    st.sampled_from([1e-4, 1e-3, 0.01, 0.05, 1.0]),
    st.integers(1, 9),
    st.integers(1, 8),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_results_do_not_depend_on_company(
    shapes: list[tuple[int, int, int]], budget: float, chunk: int, running: int, batched: bool, random: Any
) -> None:
    """Every request gives what it gives alone; where the backend is not invariant its passes are cut at the same
    places."""
    jobs = [
        ([random.randrange(4, 260) for _ in range(size)], [random.randrange(4, 260) for _ in range(past)], count, n)
        for n, (size, past, count) in enumerate(shapes)
    ]

    def params(n: int, count: int) -> SamplingParams:
        return SamplingParams(max_tokens=count, temperature=0.9 * (n % 2), seed=n, logprobs=2, ignore_eos=True)

    alone, alone_networks = [], []
    for prompt, past, count, n in jobs:
        alone_networks.append(MockNetwork())
        engine = Driven(alone_networks[-1], scheduler=Scheduler(chunk=chunk))
        alone.append([e.sampled for e in engine.events(engine.submit(MockState(past), prompt, params(n, count)))])
    clock = Clock()
    network = MockNetwork(clock=clock)
    scheduler = Scheduler(chunk=chunk, step_budget=budget, max_running=running, clock=clock)
    engine = Driven(network, scheduler=scheduler, batched=batched)
    requests = [engine.submit(MockState(past), prompt, params(n, count)) for prompt, past, count, n in jobs]
    together = [[e.sampled for e in engine.events(request)] for request in requests]
    assert together == alone
    for pieces in network.passes:
        assert batched or len(pieces) == 1
        assert all(start // chunk == (start + size - 1) // chunk for start, size in pieces)
    if not batched:
        cuts = {(start, size) for pieces in network.passes for start, size in pieces}
        assert cuts == {piece for network in alone_networks for pieces in network.passes for piece in pieces}


def test_max_running_is_kept() -> None:
    network = MockNetwork(counting)
    engine = Driven(network, scheduler=Scheduler(max_running=2), batched=True)
    requests = [engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=3)) for _ in range(5)]
    while engine.scheduler.busy:
        engine.step()
    assert max(len(pieces) for pieces in network.passes) == 2
    assert all(len(request.generated) == 3 for request in requests)


# ---------------------------------------------------------------------- cancelling and failing


def test_cancel_ends_one_request_only() -> None:
    engine = Driven(MockNetwork(counting))
    first = engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=9))
    second = engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=4))
    engine.step()
    engine.cancel(first)
    engine.cancel(first)  # twice is harmless
    events, _, tokens = finish(engine, first)
    assert tokens == ids("b") and events[-1].finish_reason is FinishReason.CANCELLED
    assert finish(engine, second)[2] == ids("bcde")


@pytest.mark.parametrize("batched", [False, True])
def test_a_failing_request_does_not_take_others_down(batched: bool) -> None:
    engine = Driven(MockNetwork(counting), batched=batched)
    bad = engine.submit(MockState(limit=3), ids("ab"), SamplingParams(max_tokens=9))
    good = engine.submit(MockState(), ids("ab"), SamplingParams(max_tokens=4))
    events = list(engine.events(bad))
    assert events[-1].finish_reason is FinishReason.ERROR and "out of pages" in str(events[-1].error)
    assert finish(engine, good)[2] == ids("cdef")
    assert not engine.scheduler.busy


def test_trace_comes_with_each_token_of_the_request_that_asked() -> None:
    for batched in (False, True):
        engine = Driven(MockNetwork(counting), scheduler=Scheduler(chunk=4), batched=batched)
        traced = engine.submit(MockState(), ids("abcdefghij"), SamplingParams(max_tokens=3), trace=True)
        plain = engine.submit(MockState(), ids("ab"), SamplingParams(max_tokens=3))
        events = list(engine.events(traced))
        assert [[int(t.entries[0]) for t in e.trace] for e in events] == [[9 // 4], [10 // 4], [11 // 4]]
        assert all(e.trace == () for e in engine.events(plain))


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.2),
        ("min_p", 2),
        ("seed", 2**63),
        ("seed", 1.0),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("stop", ("",)),
        ("stop", "text"),
        ("stop_tokens", (-1,)),
        ("logprobs", 21),
    ],
)
def test_invalid_parameters_are_named(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=f"'{name}'"):
        SamplingParams(**{name: value})


def test_invalid_prompts_are_refused() -> None:
    engine = Driven(MockNetwork(counting))
    with pytest.raises(ParameterError, match="empty"):
        engine.submit(MockState(), [])
    with pytest.raises(ParameterError, match="token 260 at place 1"):
        engine.submit(MockState(), [5, 260])
    with pytest.raises(ParameterError, match="stop_tokens"):
        engine.submit(MockState(), [5], SamplingParams(stop=("x",)))
    with pytest.raises(ParameterError, match="step_budget"):
        Scheduler(step_budget=0)
    assert not engine.scheduler.busy


# ---------------------------------------------------------------------- sampling


def draw(logits: np.ndarray, **settings: Any) -> list[int]:
    params = SamplingParams(**({"temperature": 1.0} | settings))
    return [sample(logits, params, seed=params.seed or 0, index=n).token for n in range(400)]


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    logits = np.array([0.0, 3.0, 1.0, 3.0])
    assert sample(logits, SamplingParams(), seed=0, index=0).token == 1


def test_filters_keep_what_they_say() -> None:
    logits = np.log(np.array([0.05, 0.4, 0.3, 0.15, 0.1]))
    assert set(draw(logits)) == {0, 1, 2, 3, 4}
    assert set(draw(logits, top_k=2)) == {1, 2}
    assert set(draw(logits, top_p=0.39)) == {1}
    assert set(draw(logits, top_p=0.41)) == {1, 2}
    assert set(draw(logits, top_p=0.86)) == {1, 2, 3, 4}
    assert set(draw(logits, min_p=0.3)) == {1, 2, 3}
    assert set(draw(logits, top_k=4, top_p=0.9, min_p=0.5)) == {1, 2}
    assert set(draw(logits, min_p=1.0)) == {1}
    ties = np.zeros(4)
    assert set(draw(ties, top_k=2)) == {0, 1}, "ties take the lowest ids"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.3, 3.0))
def test_frequencies_follow_the_distribution(seed: int, temperature: float) -> None:
    logits = np.random.default_rng(seed).standard_normal(5, dtype=np.float32)
    params = SamplingParams(temperature=temperature)
    count = 1500
    drawn = np.bincount([sample(logits, params, seed=seed, index=n).token for n in range(count)], minlength=5)
    likely = np.exp((logits - logits.max()) / temperature)
    expected = likely / likely.sum() * count
    assert float(((drawn - expected) ** 2 / np.maximum(expected, 0.5)).sum()) < 40  # chi square, 4 degrees: p ~ 4e-8


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9))
def test_uniform_is_in_range_and_repeatable(seed: int, index: int) -> None:
    u = uniform(seed, index)
    assert 0 <= u < 1 and u == uniform(seed, index) != uniform(seed, index + 1)


def test_seeds_repeat_and_differ() -> None:
    def run(seed: int | None) -> list[int]:
        engine = Driven(MockNetwork())
        params = SamplingParams(temperature=1.5, seed=seed, max_tokens=12, ignore_eos=True)
        return finish(engine, engine.submit(MockState(), [9, 8], params))[2]

    assert run(1) == run(1) != run(2)
    assert run(None) != run(None)


def test_logprobs_are_of_the_whole_distribution() -> None:
    logits = np.random.default_rng(3).standard_normal(50, dtype=np.float32)
    params = SamplingParams(temperature=0.7, top_k=3, logprobs=20, seed=1)
    result = sample(logits, params, seed=1, index=0, allowed=np.isin(np.arange(50), [7, 9]))
    expected = logits - np.log(np.exp(logits).sum())
    assert result.token in (7, 9)
    assert result.logprob == pytest.approx(float(expected[result.token]))
    assert [token for token, _ in result.top] == (-expected).argsort()[:20].tolist()
    assert sum(math.exp(p) for _, p in result.top) < 1
    everything = sample(np.zeros(20), SamplingParams(logprobs=20), seed=0, index=0)
    assert sum(math.exp(p) for _, p in everything.top) == pytest.approx(1)


@pytest.mark.parametrize("repeats", [False, True])
def test_constraint_is_followed_and_told(repeats: bool) -> None:
    class Twice:
        repeats_prompt = repeats

        def __init__(self) -> None:
            self.taken: list[int] = []

        def allowed(self) -> np.ndarray | None:
            return np.isin(np.arange(TINY.vocab_size), [8, 6]) if len(self.taken) < 2 else None

        def accept(self, token: int) -> None:
            self.taken.append(token)

    constraint = Twice()
    engine = Driven(MockNetwork(counting))
    request = engine.submit(MockState(), [30], SamplingParams(max_tokens=3), constraint=constraint)
    # Ties: the lowest of 6 and 8. Tokens that repeat the prompt come on top of three, others are counted.
    assert finish(engine, request)[2] == ([6, 6, 7, 8, 9] if repeats else [6, 6, 7])
    assert constraint.taken == [6, 6]


def test_damaged_logits_are_an_error_not_a_token() -> None:
    with pytest.raises(BadLogitsError):
        sample(np.array([0.0, math.nan]), SamplingParams(), seed=0, index=0)
    with pytest.raises(ParameterError):
        sample(np.zeros(3), SamplingParams(), seed=0, index=0, allowed=np.zeros(3, dtype=bool))
