"""The engine with a network whose next token is known: scheduling, stopping, sampling, cancelling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal.config import ModelConfig
from foveal.engine import (
    BadLogitsError,
    BatchEngine,
    Event,
    FinishReason,
    ParameterError,
    Request,
    SamplingParams,
    Scheduler,
    next_cut,
    sample,
)
from foveal.engine.sampler import uniform
from foveal.model import LayerTrace, Observer, Segment

TINY = ModelConfig(
    vocab_size=260,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=32,
    qk_rope_head_dim=16,
    q_lora_rank=32,
    o_groups=2,
    o_lora_rank=32,
    compress_ratios=(0, 4, 128, 4),
    index_n_heads=4,
    index_head_dim=32,
    index_topk=32,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    num_hash_layers=1,
    routed_scaling_factor=1.5,
    num_nextn_predict_layers=0,
    expert_dtype="bf16",
    linear_dtype="bf16",
)
"""Small enough to test with; only its vocabulary matters to the mock."""


class MockState:
    """Remembers its tokens, nothing else. `limit` makes it fail when it grows beyond that length."""

    def __init__(self, tokens: Sequence[int] = (), limit: int | None = None) -> None:
        self.tokens = list(tokens)
        self.limit = limit

    @property
    def length(self) -> int:
        return len(self.tokens)

    def advance(self, tokens: Tensor) -> None:
        self.tokens += tokens.tolist()
        if self.limit is not None and self.length > self.limit:
            raise RuntimeError("out of pages")


class MockNetwork:
    """Logits after a history: `rule(history)` gets all the weight, or a pseudo-random row that depends on all of it."""

    def __init__(self, rule: Callable[[list[int]], int] | None = None, config: ModelConfig = TINY) -> None:
        self.config = config
        self.rule = rule
        self.passes: list[list[tuple[int, int]]] = []

    def __call__(self, tokens: Tensor, segments: Sequence[Segment], observer: Observer | None = None) -> Tensor:
        rows: list[Tensor] = []
        self.passes.append([(segment.state.length, segment.count) for segment in segments])
        start = 0
        for place, segment in enumerate(segments):
            state = segment.state
            assert isinstance(state, MockState)
            piece = tokens[start : start + segment.count]
            start += segment.count
            for offset in range(segment.count):
                rows.append(self._row([*state.tokens, *piece[: offset + 1].tolist()]))
            state.advance(piece)
            if observer is not None:
                last = torch.tensor([state.length - 1])
                observer.traces.append(LayerTrace(0, place, 4, last // 4, torch.ones(1), torch.ones(1)))
        return torch.stack(rows)[:, None, :]

    def logits(self, streams: Tensor) -> Tensor:
        return streams[:, 0, :]

    def _row(self, history: list[int]) -> Tensor:
        if self.rule is not None:
            row = torch.zeros(self.config.vocab_size)
            row[self.rule(history)] = 20.0
            return row
        seed = 0
        for token in history:
            seed = (seed * 1_000_003 + token + 1) % (2**61 - 1)
        return torch.randn(self.config.vocab_size, generator=torch.Generator().manual_seed(seed))


def counting(history: list[int]) -> int:
    """After token n comes n + 1, within the byte ids."""
    return 4 + (history[-1] - 3) % 256


class Letters:
    """A text stream: id 4 + b is byte b; finds one stop string across tokens by holding text back."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = stop
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        self.held += chr(token - 4)
        for text in self.stop:
            if text in self.held:
                self.stopped = True
                return self.held[: self.held.index(text)]
        keep = max((n for s in self.stop for n in range(len(s)) if self.held.endswith(s[:n])), default=0)
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out

    def flush(self) -> str:
        out, self.held = self.held, ""
        return out


def ids(text: str) -> list[int]:
    return [4 + ord(letter) for letter in text]


def finish(engine: BatchEngine, request: Request) -> tuple[list[Event], str, list[int]]:
    events = list(engine.events(request))
    tokens = [e.sampled.token for e in events if e.sampled is not None and e.is_output]
    return events, "".join(e.text for e in events), tokens


# ---------------------------------------------------------------------- stopping


def test_max_tokens_ends_with_length_and_state_lacks_only_the_last_token() -> None:
    engine = BatchEngine(MockNetwork(counting))
    state = MockState()
    request = engine.submit(state, ids("ab"), SamplingParams(max_tokens=5))
    events, _, tokens = finish(engine, request)
    assert tokens == ids("cdefg") and request.generated == tokens
    assert [e.finish_reason for e in events] == [None] * 4 + [FinishReason.LENGTH]
    assert state.tokens == ids("abcdef")
    assert not engine.scheduler.busy


@pytest.mark.parametrize("chunk", [1, 2, 3, 512])
def test_stop_string_across_tokens(chunk: int) -> None:
    engine = BatchEngine(MockNetwork(counting), scheduler=Scheduler(chunk=chunk))
    request = engine.submit(MockState(), ids("ab"), SamplingParams(stop=("fgh", "zz")), text=Letters(("fgh", "zz")))
    events, text, tokens = finish(engine, request)
    assert text == "cde"
    assert tokens == ids("cdefgh"), "tokens that completed the stop string are reported"
    assert events[-1].finish_reason is FinishReason.STOP
    assert "f" not in "".join(e.text for e in events)


def test_text_held_back_for_a_stop_string_comes_out_in_the_end() -> None:
    engine = BatchEngine(MockNetwork(counting))
    request = engine.submit(MockState(), ids("b"), SamplingParams(stop=("efX",), max_tokens=4), text=Letters(("efX",)))
    _, text, _ = finish(engine, request)
    assert text == "cdef"


def test_stop_token_and_eos_are_not_output() -> None:
    engine = BatchEngine(MockNetwork(counting))
    request = engine.submit(MockState(), ids("a"), SamplingParams(stop_tokens=(4 + ord("d"),)))
    events, _, tokens = finish(engine, request)
    assert tokens == ids("bc") and request.generated == tokens
    assert events[-1].finish_reason is FinishReason.STOP and not events[-1].is_output

    eos = TINY.eos_token_id
    engine = BatchEngine(MockNetwork(lambda history: eos))
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
    st.integers(1, 64),
    st.integers(1, 9),
    st.integers(1, 8),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_results_do_not_depend_on_company(
    shapes: list[tuple[int, int, int]], budget: int, chunk: int, running: int, batched: bool, random: Any
) -> None:
    """Every request gives what it gives alone, and its passes are cut at the same places."""
    jobs = [
        ([random.randrange(4, 260) for _ in range(size)], [random.randrange(4, 260) for _ in range(past)], count, n)
        for n, (size, past, count) in enumerate(shapes)
    ]

    def params(n: int, count: int) -> SamplingParams:
        return SamplingParams(max_tokens=count, temperature=0.9 * (n % 2), seed=n, logprobs=2, ignore_eos=True)

    alone = []
    for prompt, past, count, n in jobs:
        engine = BatchEngine(MockNetwork(), scheduler=Scheduler(chunk=chunk))
        alone.append([e.sampled for e in engine.events(engine.submit(MockState(past), prompt, params(n, count)))])
    network = MockNetwork()
    engine = BatchEngine(network, scheduler=Scheduler(chunk=chunk, budget=budget, max_running=running), batched=batched)
    requests = [engine.submit(MockState(past), prompt, params(n, count)) for prompt, past, count, n in jobs]
    together = [[e.sampled for e in engine.events(request)] for request in requests]
    assert together == alone
    for pieces in network.passes:
        assert batched or len(pieces) == 1
        assert all(
            (start + size) % chunk == 0 or size == 1 or start // chunk == (start + size - 1) // chunk
            for start, size in pieces
        )


def test_decoding_goes_on_while_a_long_prompt_is_read_and_budget_holds() -> None:
    engine = BatchEngine(MockNetwork(counting), scheduler=Scheduler(chunk=8, budget=10))
    short = engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=50))
    engine.step()
    long = engine.submit(MockState(), ids("x" * 80), SamplingParams(max_tokens=1))
    for _ in range(5):
        plan = engine.step()
        assert [event.request_id for event in plan] == [short.id]
    assert long.state.length == 40
    assert len(short.generated) == 6


def test_neither_side_starves_with_a_budget_of_one() -> None:
    engine = BatchEngine(MockNetwork(counting), scheduler=Scheduler(chunk=4, budget=1))
    first = [engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=30)) for _ in range(3)]
    for _ in range(3):
        engine.step()
    late = engine.submit(MockState(), ids("x" * 12), SamplingParams(max_tokens=30))
    for _ in range(12):
        engine.step()
    assert late.generated, "the late prompt was read"
    counts = [len(request.generated) for request in first]
    assert max(counts) - min(counts) <= 2, "a small budget serves decoders in turn"


def test_max_running_is_kept() -> None:
    network = MockNetwork(counting)
    engine = BatchEngine(network, scheduler=Scheduler(max_running=2), batched=True)
    requests = [engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=3)) for _ in range(5)]
    while engine.scheduler.busy:
        engine.step()
    assert max(len(pieces) for pieces in network.passes) == 2
    assert all(len(request.generated) == 3 for request in requests)


# ---------------------------------------------------------------------- cancelling and failing


def test_cancel_ends_one_request_only() -> None:
    engine = BatchEngine(MockNetwork(counting))
    first = engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=9))
    second = engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=4))
    engine.step()
    engine.cancel(first)
    engine.cancel(first)  # twice is harmless
    events, _, tokens = finish(engine, first)
    assert tokens == ids("b") and events[-1].finish_reason is FinishReason.CANCELLED
    assert finish(engine, second)[2] == ids("bcde")


def test_closing_the_stream_cancels() -> None:
    engine = BatchEngine(MockNetwork(counting))
    request = engine.submit(MockState(), ids("a"), SamplingParams(max_tokens=9))
    stream = engine.events(request)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert request.finish_reason is FinishReason.CANCELLED and not engine.scheduler.busy
    assert list(engine.events(request)) == []


@pytest.mark.parametrize("batched", [False, True])
def test_a_failing_request_does_not_take_others_down(batched: bool) -> None:
    engine = BatchEngine(MockNetwork(counting), batched=batched)
    bad = engine.submit(MockState(limit=3), ids("ab"), SamplingParams(max_tokens=9))
    good = engine.submit(MockState(), ids("ab"), SamplingParams(max_tokens=4))
    events = list(engine.events(bad))
    assert events[-1].finish_reason is FinishReason.ERROR and "out of pages" in str(events[-1].error)
    assert finish(engine, good)[2] == ids("cdef")
    assert not engine.scheduler.busy


def test_trace_comes_with_each_token_of_the_request_that_asked() -> None:
    for batched in (False, True):
        engine = BatchEngine(MockNetwork(counting), scheduler=Scheduler(chunk=4), batched=batched)
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
    engine = BatchEngine(MockNetwork(counting))
    with pytest.raises(ParameterError, match="empty"):
        engine.submit(MockState(), [])
    with pytest.raises(ParameterError, match="token 260 at place 1"):
        engine.submit(MockState(), [5, 260])
    with pytest.raises(ParameterError, match="stop_tokens"):
        engine.submit(MockState(), [5], SamplingParams(stop=("x",)))
    with pytest.raises(ParameterError, match="budget"):
        Scheduler(budget=0)
    assert not engine.scheduler.busy


# ---------------------------------------------------------------------- sampling


def draw(logits: torch.Tensor, **settings: Any) -> list[int]:
    params = SamplingParams(**({"temperature": 1.0} | settings))
    return [sample(logits, params, seed=params.seed or 0, index=n).token for n in range(400)]


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert sample(logits, SamplingParams(), seed=0, index=0).token == 1


def test_filters_keep_what_they_say() -> None:
    logits = torch.log(torch.tensor([0.05, 0.4, 0.3, 0.15, 0.1]))
    assert set(draw(logits)) == {0, 1, 2, 3, 4}
    assert set(draw(logits, top_k=2)) == {1, 2}
    assert set(draw(logits, top_p=0.39)) == {1}
    assert set(draw(logits, top_p=0.41)) == {1, 2}
    assert set(draw(logits, top_p=0.86)) == {1, 2, 3, 4}
    assert set(draw(logits, min_p=0.3)) == {1, 2, 3}
    assert set(draw(logits, top_k=4, top_p=0.9, min_p=0.5)) == {1, 2}
    assert set(draw(logits, min_p=1.0)) == {1}
    ties = torch.zeros(4)
    assert set(draw(ties, top_k=2)) == {0, 1}, "ties take the lowest ids"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.3, 3.0))
def test_frequencies_follow_the_distribution(seed: int, temperature: float) -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(temperature=temperature)
    count = 1500
    drawn = torch.bincount(
        torch.tensor([sample(logits, params, seed=seed, index=n).token for n in range(count)]), minlength=5
    )
    expected = torch.softmax(logits / temperature, 0) * count
    assert float(((drawn - expected) ** 2 / expected.clamp(min=0.5)).sum()) < 40  # chi square, 4 degrees: p ~ 4e-8


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9))
def test_uniform_is_in_range_and_repeatable(seed: int, index: int) -> None:
    u = uniform(seed, index)
    assert 0 <= u < 1 and u == uniform(seed, index) != uniform(seed, index + 1)


def test_seeds_repeat_and_differ() -> None:
    def run(seed: int | None) -> list[int]:
        engine = BatchEngine(MockNetwork())
        params = SamplingParams(temperature=1.5, seed=seed, max_tokens=12, ignore_eos=True)
        return finish(engine, engine.submit(MockState(), [9, 8], params))[2]

    assert run(1) == run(1) != run(2)
    assert run(None) != run(None)


def test_logprobs_are_of_the_whole_distribution() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(temperature=0.7, top_k=3, logprobs=20, seed=1)
    result = sample(logits, params, seed=1, index=0, allowed=torch.tensor([7, 9]))
    expected = torch.log_softmax(logits, 0)
    assert result.token in (7, 9)
    assert result.logprob == pytest.approx(float(expected[result.token]))
    assert [token for token, _ in result.top] == expected.argsort(descending=True)[:20].tolist()
    assert sum(math.exp(p) for _, p in result.top) < 1
    everything = sample(torch.zeros(20), SamplingParams(logprobs=20), seed=0, index=0)
    assert sum(math.exp(p) for _, p in everything.top) == pytest.approx(1)


def test_constraint_is_followed_and_told() -> None:
    class Twice:
        def __init__(self) -> None:
            self.taken: list[int] = []

        def allowed(self) -> torch.Tensor | None:
            return torch.tensor([8, 6]) if len(self.taken) < 2 else None

        def accept(self, token: int) -> None:
            self.taken.append(token)

    constraint = Twice()
    engine = BatchEngine(MockNetwork(counting))
    request = engine.submit(MockState(), [30], SamplingParams(max_tokens=2), constraint=constraint)
    assert finish(engine, request)[2] == [6, 6, 7, 8]  # ties: the lowest of 6 and 8; forced tokens come on top of two
    assert constraint.taken == [6, 6]


def test_damaged_logits_are_an_error_not_a_token() -> None:
    with pytest.raises(BadLogitsError):
        sample(torch.tensor([0.0, math.nan]), SamplingParams(), seed=0, index=0)
    with pytest.raises(ParameterError):
        sample(torch.zeros(3), SamplingParams(), seed=0, index=0, allowed=torch.tensor([], dtype=torch.int64))
