"""The engine over the real network and cache: nothing but a sequence's own tokens decides its results."""

from __future__ import annotations

import random

import pytest
import torch

from foveal.cache import CacheFormat, CacheLayout, PagePool, Sequence
from foveal.checkpoint import random_weights
from foveal.config import ModelConfig
from foveal.engine import BatchEngine, Fingerprint, Sampled, SamplingParams, Scheduler
from foveal.model import Transformer, load_transformer

TINY = ModelConfig(
    vocab_size=96,
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
    index_topk=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    num_hash_layers=1,
    routed_scaling_factor=1.5,
    num_nextn_predict_layers=0,
    expert_dtype="bf16",
    linear_dtype="bf16",
)
"""Every layer kind, hash and learned routing; the indexer selects from 64 tokens on."""

Job = tuple[list[int], SamplingParams]


@pytest.fixture(scope="module")
def network() -> Transformer:
    return load_transformer(TINY, dict(random_weights(TINY, seed=5)), dtype=torch.float32)


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


def run(network: Transformer, todo: list[Job], scheduler: Scheduler) -> list[list[Sampled | None]]:
    pool = PagePool(CacheLayout(TINY, CacheFormat()))
    engine = BatchEngine(network, scheduler=scheduler)
    states = [Sequence(pool, dtype=torch.float32) for _ in todo]
    requests = [engine.submit(state, *job) for state, job in zip(states, todo, strict=True)]
    results = [[event.sampled for event in engine.events(request)] for request in requests]
    for state in states:
        state.free()
    assert pool.live == 0
    return results


def test_a_request_alone_equals_the_same_among_seven_others(network: Transformer) -> None:
    """Token for token and log-probability for log-probability, at any budget and in any order of arrival."""
    todo = jobs()
    alone = [run(network, [job], Scheduler(chunk=128))[0] for job in todo]
    for budget, running in ((1, 8), (200, 3), (5000, 8)):
        assert run(network, todo, Scheduler(chunk=128, budget=budget, max_running=running)) == alone
    assert run(network, todo[::-1], Scheduler(chunk=128, budget=150))[::-1] == alone


def test_prefill_and_generation_leave_the_same_bits(network: Transformer) -> None:
    """A prompt read beforehand and one read by the request give the same logits."""
    prompt, params = jobs()[6]
    pool = PagePool(CacheLayout(TINY, CacheFormat()))
    engine = BatchEngine(network, scheduler=Scheduler(chunk=128))
    together, apart = Sequence(pool, dtype=torch.float32), Sequence(pool, dtype=torch.float32)
    first = [event.sampled for event in engine.events(engine.submit(together, prompt, params))]
    while apart.length < 384:
        engine.prefill(apart, prompt[apart.length : 384])
    second = [event.sampled for event in engine.events(engine.submit(apart, prompt[384:], params))]
    assert first == second
    assert engine.prefill(apart, []) == 0


def test_a_traced_request_gives_the_same_tokens(network: Transformer) -> None:
    prompt, params = jobs()[7]
    pool = PagePool(CacheLayout(TINY, CacheFormat()))
    engine = BatchEngine(network)
    results = []
    for trace in (False, True):
        request = engine.submit(Sequence(pool, dtype=torch.float32), prompt, params, trace=trace)
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
