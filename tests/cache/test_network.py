"""The real network over the cache gives what it gives over plain tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cache_support import CONFIG, EXACT, pool
from cache_support import random_tokens as random_ids

from foveal.backends.reference.runner import OnTensors
from foveal.cache import CacheFormat, Part, Sequence
from foveal.formats.tensors import to_tensor
from foveal.model import PlainState, Segment, Transformer


def network() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1:
            torch.nn.init.normal_(tensor, std=0.3 if "hc_" in name else 0.15)
    return model.eval()


def random_tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(random_ids(count, seed))


def run(model: Transformer, tokens: torch.Tensor, states: list[PlainState | Sequence]) -> torch.Tensor:
    on = [OnTensors(state) if isinstance(state, Sequence) else state for state in states]
    segments = [Segment(state, len(tokens)) for state in on]
    with torch.inference_mode():
        return model.logits(model(tokens.repeat(len(states)), segments))


@pytest.mark.parametrize("chunk", [1, 50, 129])
def test_same_logits_as_over_plain_state(chunk: int) -> None:
    model, tokens = network(), random_tokens(140 if chunk == 1 else 300)
    plain, sequence = PlainState(CONFIG), Sequence(pool(EXACT))
    first = 122 if chunk == 1 else 0  # one by one only around the 128th, to save time
    for part in (*tokens[:first].split(61), *tokens[first:].split(chunk)):
        if not len(part):
            continue
        assert torch.equal(run(model, part, [plain]), run(model, part, [sequence]))
    for layer in range(1, 4):
        assert torch.equal(plain.entries(layer, Part.MAIN), to_tensor(sequence.entries(layer, Part.MAIN)))


def test_packed_formats_hold_what_the_official_numerics_leave() -> None:
    """The network rounds entries to FP8 and keys to FP4 itself: packing them then loses nothing. Rotary channels become
    BF16."""
    model, tokens = network(), random_tokens(300)
    plain, sequence = PlainState(CONFIG), Sequence(pool(CacheFormat("fp8", "fp4")), dtype=np.float32)
    run(model, tokens, [plain])
    run(model, tokens, [sequence])
    # Layer 1 only: what the cache rounds there is what later layers then compute with.
    assert torch.equal(plain.entries(1, Part.INDEX), to_tensor(sequence.entries(1, Part.INDEX)))
    mine, right, rotary = to_tensor(sequence.entries(1, Part.MAIN)), plain.entries(1, Part.MAIN), CONFIG.nope_head_dim
    assert torch.equal(mine[:, :rotary], right[:, :rotary])
    assert torch.equal(mine[:, rotary:], right[:, rotary:].bfloat16().float())
    assert torch.equal(to_tensor(sequence.window(1)), plain.window(1).bfloat16().float())


def test_truncate_and_replay_through_the_network() -> None:
    model, tokens = network(), random_tokens(300)
    sequence = Sequence(pool(EXACT))
    run(model, tokens[:130], [sequence])
    sequence.keep_tail()
    run(model, tokens[130:270], [sequence])
    twin = sequence.fork()
    run(model, tokens[270:], [twin])
    run(model, random_tokens(90, seed=8), [sequence])
    replay = sequence.truncate(270)
    assert sequence.length == 130
    run(model, to_tensor(replay).long(), [sequence])
    assert np.array_equal(sequence.tokens, twin.tokens[:270])
    logits = run(model, tokens[270:], [sequence])
    fresh = Sequence(pool(EXACT))
    for part in (tokens[:130], tokens[130:270]):
        run(model, part, [fresh])
    assert torch.equal(logits, run(model, tokens[270:], [fresh]))
    assert np.array_equal(sequence.tokens, twin.tokens)
