"""The network computes what transformers' `DeepseekV4ForCausalLM` computes (eager, fp32, no simulated quantisation).

Greatest allowed difference of a logit: 1e-4 where logits are of the size of 4. Configurations come from seeds; another
range of them runs with FOVEAL_PARITY_SEED=1000 in the environment. With an indexer that drops entries a wrong pick
shows as a difference of 0.01 to 1, so the tests use 32 or more indexer heads: then no two scores are equal.
Every test runs on the reference, on the native operations one by one, and on the network in one native call.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.hugging_face import transformers_config, transformers_logits, transformers_model
from helpers.networks import (
    cpu_logits,
    forward,
    native_logits,
    pieces,
    random_config,
    random_network,
    random_tokens,
    tiny_config,
)
from helpers.networks import logits as reference_logits

from foveal.config import ModelConfig, Numerics, YarnScaling
from foveal.model import PlainState, Segment, Transformer, load_transformer, named_weights
from foveal.model.rope import rotation_of

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
FIRST_SEED = int(os.environ.get("FOVEAL_PARITY_SEED", "0"))


_RUN = {"reference": reference_logits, "ops.cpu": cpu_logits, "native": native_logits}
_backend = "reference"


@pytest.fixture(params=list(_RUN), autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `logits` runs on."""
    monkeypatch.setattr(sys.modules[__name__], "_backend", request.param)
    return str(request.param)


def logits(model: Transformer, tokens: torch.Tensor, cuts: Sequence[int] = ()) -> torch.Tensor:
    """Logits [n, V] of a new sequence, fed in the pieces that `cuts` makes, on the test's backend."""
    return _RUN[_backend](model, tokens, cuts)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: object = "") -> None:
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max().item()
    assert difference <= TOLERANCE, f"logits differ by {difference:.2e} {what}"


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 16))
def test_random_shapes_whole_chunked_and_decoded(seed: int) -> None:
    """Any shape, any length: in one piece, then in random chunks followed by single tokens."""
    config = random_config(seed)
    draw = random.Random(seed)
    count = draw.choice([1, 6, 125, 128, 131, 257, 290])
    model, tokens = random_network(config, seed), random_tokens(config, count, seed)
    theirs = transformers_model(model)
    whole = transformers_logits(theirs, tokens)
    assert_close(logits(model, tokens), whole, config)
    cuts = [*draw.sample(range(1, max(2, count)), min(4, max(1, count - 1))), *range(max(1, count - 9), count)]
    chunked = logits(model, tokens, cuts)
    assert_close(chunked, whole, config)
    assert_close(chunked, transformers_logits(theirs, tokens, cuts), config)


KINDS: dict[str, tuple[int, ...]] = {
    "window only": (0, 0),
    "csa first": (4, 0),
    "csa only": (4, 4),
    "hca first": (128, 4),
    "hca only": (128, 128),
    "all": (0, 4, 128, 4),
}


@pytest.mark.parametrize("ratios", KINDS.values(), ids=KINDS)
def test_every_length_around_the_window_borders(ratios: tuple[int, ...]) -> None:
    """One run of 261 tokens covers every residue mod 4 and 128: each position is the end of a sequence of its length.

    transformers sees it whole; ours in pieces that end around each border."""
    config = tiny_config(num_hidden_layers=len(ratios), compress_ratios=ratios)
    model, tokens = random_network(config, 7), random_tokens(config, 261, 7)
    cuts = [1, 2, 3, 4, 5, 6, 7, 8, 9, 127, 128, 129, 130, 131, 132, 255, 256, 257]
    theirs = transformers_logits(transformers_model(model), tokens)
    assert_close(logits(model, tokens), theirs)
    assert_close(logits(model, tokens, cuts), theirs)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 127, 128, 129])
def test_a_whole_sequence_of_exactly_this_length(count: int) -> None:
    """No token after the border: the last window of each ratio is complete or not."""
    model = random_network(tiny_config(), count)
    tokens = random_tokens(model.config, count, count)
    assert_close(logits(model, tokens), transformers_logits(transformers_model(model), tokens))


def test_token_by_token_from_the_first() -> None:
    model = random_network(tiny_config(), 3)
    tokens = random_tokens(model.config, 131, 3)
    steps = list(range(1, 131))
    theirs = transformers_model(model)
    ours = logits(model, tokens, steps)
    assert_close(ours, transformers_logits(theirs, tokens, steps))
    assert_close(ours, transformers_logits(theirs, tokens))


SPECIAL: dict[str, dict[str, Any]] = {
    "no channel stands still": {"qk_rope_head_dim": 16, "head_dim": 16, "index_head_dim": 16},
    "index head wider than head": {"head_dim": 24, "index_head_dim": 64},
    "one rotating pair": {"qk_rope_head_dim": 2},
    "query rank is the hidden size": {"q_lora_rank": 40},
    "query rank above the hidden size": {"q_lora_rank": 52},
    "one head, one group": {"num_attention_heads": 1, "o_groups": 1},
    "a group for each head": {"num_attention_heads": 4, "o_groups": 4},
    "every expert active": {"n_routed_experts": 3, "num_experts_per_tok": 3},
    "one expert": {"n_routed_experts": 1, "num_experts_per_tok": 1},
    "no hash layer": {"num_hash_layers": 0},
    "hash layers only": {"num_hash_layers": 4},
    "three shared experts": {"n_shared_experts": 3},
    "clamp bites": {"swiglu_limit": 0.1},
    "two streams": {"hc_mult": 2},
    "one stream": {"hc_mult": 1},
    "one sinkhorn round": {"hc_sinkhorn_iters": 1},
    "large eps": {"hc_eps": 0.02, "rms_norm_eps": 0.1},
    "no yarn": {"rope_scaling": None},
    "yarn of factor 1": {"rope_scaling": YarnScaling(factor=1.0, original_max_position_embeddings=64)},
    "yarn of factor 40": {"rope_scaling": YarnScaling(factor=40.0, original_max_position_embeddings=100)},
    "yarn, other betas": {"rope_scaling": YarnScaling(beta_fast=8.0, beta_slow=2.0)},
    "yarn from 5 tokens": {"rope_scaling": YarnScaling(original_max_position_embeddings=5)},
    "close thetas": {"rope_theta": 50.0, "compress_rope_theta": 60.0},
    "window of 1": {"sliding_window": 1},
    "window of 2": {"sliding_window": 2},
    "window beyond the text": {"sliding_window": 500},
    "top 1": {"index_topk": 1},
    "top 33": {"index_topk": 33},
    "top 34": {"index_topk": 34},
    "seventy indexer heads": {"index_n_heads": 70},
}


@pytest.mark.parametrize("changes", SPECIAL.values(), ids=SPECIAL)
def test_corner_of_the_configuration(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    model, tokens = random_network(config, 11), random_tokens(config, 137, 11)
    theirs = transformers_logits(transformers_model(model), tokens)
    assert_close(logits(model, tokens), theirs)
    assert_close(logits(model, tokens, [30, 129, 130, 131]), theirs)


def test_several_sequences_at_once() -> None:
    """Sequences of different lengths and ages share each step; transformers runs each alone."""
    model = random_network(tiny_config(), 5)
    theirs = transformers_model(model)
    texts = [random_tokens(model.config, count, count) for count in (140, 3, 65, 129)]
    states = [PlainState(model.config) for _ in texts]
    results: list[list[torch.Tensor]] = [[] for _ in texts]
    rests = [text.split(size) for text, size in zip(texts, (50, 1, 64, 128), strict=True)]
    for step in range(max(map(len, rests))):
        running = [i for i, rest in enumerate(rests) if step < len(rest)]
        parts = [rests[i][step] for i in running]
        with torch.inference_mode():
            streams = model(torch.cat(parts), [Segment(states[i], len(p)) for i, p in zip(running, parts, strict=True)])
            for i, one in zip(running, model.logits(streams).split([len(p) for p in parts]), strict=True):
                results[i].append(one)
    for text, result in zip(texts, results, strict=True):
        assert_close(torch.cat(result), transformers_logits(theirs, text))


def test_hash_table_with_repeated_experts() -> None:
    """A table may name an expert twice for a token (transformers' own initial table is all zeros)."""
    model = random_network(tiny_config(num_hash_layers=4), 2)
    for name, buffer in model.named_buffers():
        if name.endswith("tid2eid"):
            buffer.copy_(torch.randint(0, 2, buffer.shape, generator=torch.Generator().manual_seed(0)))
    tokens = random_tokens(model.config, 20, 2)
    assert_close(logits(model, tokens), transformers_logits(transformers_model(model), tokens))


def test_tokens_far_into_a_long_text() -> None:
    """Position 2000 and many entries: angles stay together, and top-k works over 500 entries."""
    config = tiny_config(num_hidden_layers=2, compress_ratios=(4, 128), index_topk=40)
    model, tokens = random_network(config, 13), random_tokens(config, 2003, 13)
    assert_close(logits(model, tokens, [1000, 1999]), transformers_logits(transformers_model(model), tokens))


def test_simulated_quantisation_is_the_difference_to_transformers() -> None:
    """transformers simulates none of the run-time quantisations (each has its switch in `Numerics`). FP8 storage makes
    activations count; in this shape each switch alone changes the logits, and without all three they agree."""
    config = tiny_config(linear_dtype="fp8", index_topk=4)
    tokens = random_tokens(config, 90, 1)
    model = random_network(config, 1)
    theirs = transformers_logits(transformers_model(model), tokens)
    assert_close(logits(model, tokens), theirs)
    for field in ("kv", "index", "activations"):
        switched = random_network(config, 1, Numerics(**{n: n == field for n in ("kv", "index", "activations")}))
        assert (logits(switched, tokens) - theirs).abs().max() > 10 * TOLERANCE, field


def test_rotary_frequencies() -> None:
    """Equal to transformers' in the last bits, for window-only and compressed layers."""
    for seed in range(30):
        config = random_config(seed)
        rotary = transformers_model(random_network(config, 0)).model.rotary_emb if seed == 0 else None
        if rotary is None:
            from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

            rotary = DeepseekV4RotaryEmbedding(transformers_config(config))
        for layer in range(config.num_hidden_layers):
            theirs = rotary.compress_inv_freq if config.compress_ratios[layer] else rotary.main_inv_freq
            torch.testing.assert_close(rotation_of(config, layer).frequencies, theirs, rtol=3e-7, atol=0)


def test_published_frequencies() -> None:
    """The check values of the official code at Flash's numbers."""
    flash = tiny_config(head_dim=64, index_head_dim=64, qk_rope_head_dim=64, rope_scaling=YarnScaling())
    plain, yarn = rotation_of(flash, 0).frequencies, rotation_of(flash, 1).frequencies
    assert plain[0] == 1 and plain[16] == pytest.approx(0.01, rel=1e-6)
    wanted = {15: 160000 ** (-30 / 64), 16: 0.002265625, 20: 2.969777783e-4, 24: 1.953125e-5, 31: 5.680529e-7}
    for pair, value in wanted.items():
        assert yarn[pair].item() == pytest.approx(value, rel=1e-6)


def test_loaded_weights_agree_too() -> None:
    """The serving form of the network (weights held, not parameters) against transformers."""
    model = random_network(tiny_config(), 17)
    served = load_transformer(model.config, dict(named_weights(model)), numerics=Numerics.none())
    tokens = random_tokens(model.config, 70, 17)
    assert_close(logits(served, tokens), transformers_logits(transformers_model(model), tokens))


@pytest.mark.parametrize("seed", range(40))
def test_config_survives_transformers(seed: int) -> None:
    """Ours -> official dict -> transformers -> its own spelling -> ours."""
    config = random_config(seed)
    theirs = transformers_config(config).to_dict()
    assert "compress_ratios" not in theirs and "num_hash_layers" not in theirs, "no longer tests the other spelling"
    back = ModelConfig.from_dict(theirs)
    ratios = back.compress_ratios[: back.num_hidden_layers]
    assert back.replace(num_nextn_predict_layers=0, compress_ratios=ratios) == config


def test_forward_in_pieces_covers_the_text() -> None:
    """The helper cuts as its name says."""
    assert pieces(10, [3, 3, 0, 10, 7]) == [3, 4, 3]
    model = random_network(tiny_config(), 1)
    state = PlainState(model.config)
    streams = forward(model, random_tokens(model.config, 10, 1), state, [4])
    assert streams.shape == (10, 4, 40) and state.length == 10
