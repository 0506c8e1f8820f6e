"""Prompts that are scored: in pieces beside other requests, and bit for bit what choosing the same tokens tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_support import Clock, Driven, MockNetwork, MockState
from cli_support import write_model

from foveal.batch import BadLogitsError, FinishReason, Kind, ParameterError, Request, Sampled, SamplingParams, Scheduler
from foveal.engine import Engine

DICE = np.random.default_rng(4)
PROMPT = DICE.integers(4, 260, size=700).tolist()


def submit(engine: Driven, prompt: list[int], top: int, past: list[int] | None = None) -> Request:
    params = SamplingParams(logprobs=top)
    return engine.submit(MockState(past or ()), prompt[:-1], params, kind=Kind.SCORE, targets=prompt[1:])


def scores(engine: Driven, request: Request) -> list[Sampled]:
    return [each for event in engine.events(request) for each in event.scored]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_scores_are_those_of_the_network_whatever_runs_beside(batched: bool, chunk: int) -> None:
    network = MockNetwork()
    expected = []
    for place in range(1, 60):
        row = network._row(PROMPT[:place]).astype(np.float64)
        row -= row.max()
        exact = (row - np.log(np.exp(row).sum())).astype(np.float32)
        best = np.argsort(-exact, kind="stable")[:3]
        top = tuple((int(token), float(exact[token])) for token in best)
        expected.append(Sampled(PROMPT[place], float(exact[PROMPT[place]]), top))
    clock = Clock()
    scheduler = Scheduler(chunk=chunk, step_budget=0.002, clock=clock)
    engine = Driven(MockNetwork(clock=clock), scheduler=scheduler, batched=batched)
    talking = engine.submit(MockState(), [9], SamplingParams(max_tokens=500, ignore_eos=True))
    for _ in range(3):
        engine.step()
    request = submit(engine, PROMPT[:60], 3)
    other = submit(engine, PROMPT[30:40], 0)
    events = list(engine.events(request))
    assert [each for event in events for each in event.scored] == expected
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + [FinishReason.DONE]
    assert all(event.ran == len(event.scored) for event in events) and (len(events) > 3 or not batched)
    assert [each.token for each in scores(engine, other)] == PROMPT[31:40]
    engine.cancel(talking)


def test_a_step_that_also_scores_keeps_its_budget() -> None:
    """Scoring a token takes twenty times as long as reading it."""

    class Dear(MockNetwork):
        def logits(self, streams: np.ndarray) -> np.ndarray:
            assert self.clock is not None
            self.clock.now += 0.002 * len(streams)
            return super().logits(streams)

    clock = Clock()
    engine = Driven(Dear(clock=clock), scheduler=Scheduler(step_budget=0.05, clock=clock), batched=True)
    talking = engine.submit(MockState(), [9], SamplingParams(max_tokens=5000, ignore_eos=True))
    for _ in range(20):
        engine.step()
    reading = engine.submit(MockState(), PROMPT * 2, kind=Kind.READ)
    while reading.finish_reason is None:
        engine.step()
    request = submit(engine, PROMPT, 0)
    took = []
    while request.finish_reason is None:
        before = clock.now
        engine.step()
        took.append(clock.now - before)
    assert max(took) <= 0.05 * 1.2 and len(took) < 60
    assert talking.finish_reason is None


def test_what_cannot_be_scored_is_refused() -> None:
    engine = Driven(MockNetwork(), vocabulary=250)
    for options in ({"kind": Kind.SCORE}, {"targets": [5, 6]}, {"kind": Kind.SCORE, "targets": [5]}):
        with pytest.raises(ParameterError):
            engine.request([7, 8], **options)
    with pytest.raises(ParameterError, match="not in the vocabulary"):
        engine.request([7, 8], kind=Kind.SCORE, targets=[5, 255])


def test_logits_that_are_no_numbers_end_the_request_that_has_them() -> None:
    class Damaged(MockNetwork):
        def _row(self, history: list[int]) -> np.ndarray:
            row = super()._row(history)
            row[3] = np.nan if history[-1] == 77 else row[3]
            return row

    engine = Driven(Damaged(), batched=True)
    good, bad = submit(engine, [5, 6, 7, 8], 0), submit(engine, [5, 77, 7, 8], 0)
    assert isinstance(list(engine.events(bad))[-1].error, BadLogitsError)
    assert len(scores(engine, good)) == 3


# ---------------------------------------------------------------------- the real network


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = write_model(tmp_path_factory.mktemp("models") / "tiny", 4)
    with Engine.open(folder, threads=1) as engine:
        yield engine
        assert engine.pool.live == 0


def test_scores_are_what_decoding_gives_bit_for_bit(engine: Engine) -> None:
    """The tokens that were chosen, one after the other, and the same read in pieces."""
    prompt = DICE.integers(4, 4000, size=140).tolist()
    settings: dict[str, Any] = {"temperature": 1.0, "seed": 3, "ignore_eos": True}
    said = engine.generate(prompt, max_tokens=390, logprobs=4, **settings)
    whole = [*prompt, *said.tokens]
    scored = engine.score(whole, logprobs=4)
    assert len(scored) == len(whole) - 1 and scored[len(prompt) - 1 :] == said.logprobs
    greedy = engine.generate(prompt, max_tokens=20, logprobs=0, ignore_eos=True)
    assert engine.score([*prompt, *greedy.tokens])[len(prompt) - 1 :] == greedy.logprobs
    with engine.new_sequence() as base:
        engine.prefill(base, whole[:301])
        assert engine.score(whole[301:], logprobs=4, base=base) == scored[301:]


def test_short_prompts_have_nothing_to_score(engine: Engine) -> None:
    assert engine.score([7]) == () and engine.score("") == ()
