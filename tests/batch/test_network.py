"""The engine over the real network and cache: nothing but a sequence's own tokens decides its results."""

from __future__ import annotations

import random

import batch_support
import numpy as np
import pytest
import torch
from batch_support import Driven

from foveal.backends.reference import ReferenceRunner
from foveal.batch import Kind, Sampled, SamplingParams, Scheduler
from foveal.cache import CacheFormat, CacheLayout, PagePool, Sequence
from foveal.checkpoint import random_weights
from foveal.checkpoint.identity import Fingerprint
from foveal.config import ModelConfig
from foveal.model import load_transformer

pytestmark = pytest.mark.slow

TINY = batch_support.TINY.replace(vocab_size=96, index_topk=16)
"""Every layer kind, hash and learned routing; the indexer selects from 64 tokens on."""

Job = tuple[list[int], SamplingParams]


@pytest.fixture(scope="module")
def network() -> ReferenceRunner:
    return ReferenceRunner(load_transformer(TINY, dict(random_weights(TINY, seed=5)), dtype=torch.float32))


def jobs() -> list[Job]:
    """Eight requests around the places where caches go wrong; every other one is sampled."""
    dice = random.Random(1)
    lengths = (1, 3, 127, 129, 255, 258, 385, 514)
    return [
        (
            [dice.randrange(2, 96) for _ in range(length)],
            SamplingParams(max_tokens=6, temperature=0.8 * (n % 2), seed=n, logprobs=3, ignore_eos=True),
        )
        for n, length in enumerate(lengths)
    ]


def run(network: ReferenceRunner, todo: list[Job], scheduler: Scheduler) -> list[list[Sampled | None]]:
    pool = PagePool(CacheLayout(TINY, CacheFormat()))
    engine = Driven(network, scheduler=scheduler)
    states = [Sequence(pool, dtype=np.float32) for _ in todo]
    requests = [engine.submit(state, *job) for state, job in zip(states, todo, strict=True)]
    results = [[event.sampled for event in engine.events(request)] for request in requests]
    for state in states:
        state.free()
    assert pool.live == 0
    return results


def test_a_request_alone_equals_the_same_among_seven_others(network: ReferenceRunner) -> None:
    """Token for token and log-probability for log-probability, at any budget and in any order of arrival."""
    todo = jobs()
    alone = [run(network, [job], Scheduler(chunk=128))[0] for job in todo]
    for budget, running in ((1e-4, 8), (0.01, 3), (10.0, 8)):
        assert run(network, todo, Scheduler(chunk=128, step_budget=budget, max_running=running)) == alone
    assert run(network, todo[::-1], Scheduler(chunk=128))[::-1] == alone


def test_prefill_and_generation_leave_the_same_bits(network: ReferenceRunner) -> None:
    """A prompt read beforehand and one read by the request give the same logits."""
    prompt, params = jobs()[6]
    pool = PagePool(CacheLayout(TINY, CacheFormat()))
    engine = Driven(network, scheduler=Scheduler(chunk=128))
    together, apart = Sequence(pool, dtype=np.float32), Sequence(pool, dtype=np.float32)
    first = [event.sampled for event in engine.events(engine.submit(together, prompt, params))]
    read = [event.ran for event in engine.events(engine.submit(apart, prompt[:384], kind=Kind.READ))]
    assert read == [128, 128, 128] and apart.length == 384
    second = [event.sampled for event in engine.events(engine.submit(apart, prompt[384:], params))]
    assert first == second


def test_a_traced_request_gives_the_same_tokens(network: ReferenceRunner) -> None:
    prompt, params = jobs()[7]
    pool = PagePool(CacheLayout(TINY, CacheFormat()))
    engine = Driven(network)
    results = []
    for trace in (False, True):
        request = engine.submit(Sequence(pool, dtype=np.float32), prompt, params, trace=trace)
        results.append(list(engine.events(request)))
    plain, traced = results
    assert [event.sampled for event in plain] == [event.sampled for event in traced]
    for place, event in enumerate(traced):
        assert [t.layer for t in event.trace] == [0, 1, 2, 3]
        for t in event.trace:
            assert len(t.entries) == len(t.entry_mass)
            assert len(t.window_mass) == min(len(prompt) + place, TINY.sliding_window)
            assert 0 < float(t.entry_mass.sum() + t.window_mass.sum()) <= TINY.num_attention_heads + 1e-4


def test_fingerprints_say_what_differs() -> None:
    def made(config: ModelConfig = TINY, weights: str = "w", tokenizer: str = "t", numbers: str = "n") -> Fingerprint:
        return Fingerprint.of(config, weights=weights, tokenizer=tokenizer, numbers=numbers)

    base = made()
    assert base.differing(made()) == () and base.digest == made().digest
    assert Fingerprint.from_dict(base.to_dict()) == base
    assert base.differing(made(weights="x")) == ("weights",)
    assert base.differing(made(tokenizer="x", numbers="x")) == ("tokenizer", "number format")
    assert base.differing(made(TINY.replace(compress_rope_theta=1e4), weights="x")) == ("rotary settings",)
    assert base.differing(made(TINY.replace(index_topk=8), weights="x")) == ("architecture",)
    assert base.differing(made(TINY.replace(max_position_embeddings=4096))) == ()
    with pytest.raises(ValueError, match="rotary"):
        Fingerprint.from_dict({"weights": "w"})
