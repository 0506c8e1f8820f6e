"""Bias and penalties: what they add to logits, alone and beside others, wherever a prompt is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batch_support import TINY, Driven, MockNetwork, MockState
from hypothesis import given
from hypothesis import strategies as st

from foveal.batch import ParameterError, SamplingParams, Scheduler
from foveal.batch.penalties import Tally, adjusted, adjusted_plainly, adjusts

SIZE = 40
PENALTIES = st.floats(-2, 2, width=32)
Row = tuple[SamplingParams, list[int], list[int]]
TOKENS = st.lists(st.integers(0, SIZE - 1), max_size=30)


@st.composite
def settings_of(draw: st.DrawFn) -> SamplingParams:
    return SamplingParams(
        frequency_penalty=draw(PENALTIES),
        presence_penalty=draw(PENALTIES),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.5])),
        logit_bias=tuple(draw(st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100), max_size=5)).items()),
    )


@given(st.lists(st.tuples(settings_of(), TOKENS, TOKENS), min_size=1, max_size=5), st.integers(0, 2**32))
def test_many_rows_at_once_are_what_the_formulas_say(rows: list[Row], seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((len(rows), SIZE), dtype=np.float32) * 5
    tallies = []
    for params, prompt, output in rows:
        tallies.append(Tally(params, np.array(prompt, dtype=np.int64), SIZE))
        for token in output:
            tallies[-1].add(token)
    before = logits.copy()
    together = adjusted(list(logits), tallies)
    assert np.array_equal(logits, before), "the logits themselves are reported"
    for row, (params, prompt, output), tally, found in zip(logits, rows, tallies, together, strict=True):
        assert np.array_equal(found, adjusted_plainly(row, params, prompt, output))
        assert np.array_equal(found, adjusted([row], [tally])[0]), "other rows change nothing"


def test_what_changes_nothing_costs_nothing() -> None:
    assert not adjusts(SamplingParams(temperature=1.0, logprobs=3))
    engine = Driven(MockNetwork())
    assert engine.request([5], SamplingParams()).tally is None
    for settings in ({"frequency_penalty": 0.1}, {"presence_penalty": -1}, {"repetition_penalty": 2}):
        assert engine.request([5], SamplingParams(**settings)).tally is not None


def test_the_output_is_counted_and_not_the_prompt() -> None:
    """After any token the network likes 7 best, then 8, then 9; each time that a token is put out costs it 2."""

    class Liking(MockNetwork):
        def _row(self, history: list[int]) -> np.ndarray:
            row = np.full(self.config.vocab_size, -50, np.float32)
            row[[7, 8, 9]] = 3.0, 2.0, -0.5
            return row

    def put_out(**settings: Any) -> list[int]:
        engine = Driven(Liking())
        request = engine.submit(MockState(), [7, 7, 7], SamplingParams(max_tokens=6, **settings))
        chosen = [event.sampled for event in engine.events(request)]
        assert all(each is not None and each.logprob > -5 for each in chosen), "those of the network itself"
        return [each.token for each in chosen if each is not None]

    assert put_out() == [7] * 6
    assert put_out(frequency_penalty=2.0) == [7, 8, 7, 8, 9, 7]
    assert put_out(presence_penalty=2.0) == [7, 8, 7, 7, 7, 7]
    assert put_out(presence_penalty=-2.0) == [7] * 6
    assert put_out(repetition_penalty=2.0) == [8, 7, 7, 7, 7, 7], "the prompt counts here"
    assert put_out(logit_bias=((9, 100.0),)) == [9] * 6
    assert put_out(logit_bias=((7, -100.0), (8, -100.0))) == [9] * 6


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_company_and_cuts_change_nothing(batched: bool, chunk: int) -> None:
    dice = np.random.default_rng(3)
    jobs = [
        (
            dice.integers(4, 260, size=int(dice.integers(1, 20))).tolist(),
            SamplingParams(
                max_tokens=12,
                temperature=0.7 * (number % 2),
                seed=number,
                logprobs=2,
                ignore_eos=True,
                frequency_penalty=0.5 * (number % 3),
                presence_penalty=0.25 * (number % 2),
                repetition_penalty=1.0 + 0.2 * (number % 4),
                logit_bias=((number + 4, 1.5),) if number % 3 else (),
            ),
        )
        for number in range(9)
    ]

    def run(todo: list[Any], **settings: Any) -> list[Any]:
        engine = Driven(MockNetwork(), scheduler=Scheduler(chunk=chunk, **settings), batched=batched)
        requests = [engine.submit(MockState(), *job) for job in todo]
        return [[event.sampled for event in engine.events(request)] for request in requests]

    alone = [run([job])[0] for job in jobs]
    assert run(jobs) == alone and run(jobs[::-1])[::-1] == alone and run(jobs, max_running=2) == alone


def test_a_prompt_that_is_known_already_counts_all_the_same() -> None:
    params = SamplingParams(max_tokens=5, repetition_penalty=3.0, ignore_eos=True)
    prompt = [20, 30, 40, 50]
    engine = Driven(MockNetwork())
    whole = [event.sampled for event in engine.events(engine.submit(MockState(), prompt, params))]
    rest = engine.submit(MockState(prompt[:3]), prompt[3:], params, whole_prompt=prompt)
    assert [event.sampled for event in engine.events(rest)] == whole
    other = engine.submit(MockState(prompt[:3]), prompt[3:], params)
    assert other.tally is not None and other.tally.tokens.tolist() == [50]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 2.01),
        ("presence_penalty", "much"),
        ("presence_penalty", float("nan")),
        ("repetition_penalty", 0.0),
        ("logit_bias", {3: 1.0}),
        ("logit_bias", ((3, 101.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((3, 1.0), (3, 2.0))),
        ("logit_bias", ((3,),)),
    ],
)
def test_what_is_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=f"'{name}'"):
        SamplingParams(**{name: value})


def test_a_bias_for_a_token_that_there_is_not_is_refused() -> None:
    engine = Driven(MockNetwork(), vocabulary=TINY.vocab_size - 10)
    with pytest.raises(ParameterError, match="'logit_bias' has token 250"):
        engine.request([5], SamplingParams(logit_bias=((250, 1.0),)))
