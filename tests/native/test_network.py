"""The network in one native call against the definition, on random networks: same numbers, whatever the batch, the
cuts, the threads and the instruction set."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch
from helpers.networks import in_pages, native, pieces, random_config, random_network, random_tokens, tiny_config
from torch import Tensor

from foveal import _native
from foveal.cache import CacheFormat, CacheFull, CacheLayout, PagePool, Sequence
from foveal.checkpoint import random_weights
from foveal.config import ModelConfig, Numerics
from foveal.formats.tensors import to_tensor
from foveal.model import Observer, PlainState, Segment, Transformer, load_transformer

pytestmark = pytest.mark.slow

ISAS = _native.available_isas()
EXACT = CacheFormat(kv="fp32", index="fp32")


def sequence(config: ModelConfig, kv: CacheFormat = EXACT, limit: int | None = None) -> Sequence:
    return Sequence(PagePool(CacheLayout(config, kv), limit=limit), dtype=np.float32)


def run(network: Any, state: Sequence, tokens: Tensor, cuts: Seq[int] = ()) -> Tensor:
    """Logits [n, V], the tokens fed in pieces."""
    parts = tokens.split(pieces(len(tokens), cuts))
    with torch.inference_mode():
        return torch.cat([network.logits(network(part, [Segment(state, len(part))])).clone() for part in parts])


def quantised(config: ModelConfig, seed: int = 1, numerics: Numerics | None = None) -> Transformer:
    """A network with FP4 experts and FP8 linears as a checkpoint stores them."""
    return load_transformer(config, dict(random_weights(config, seed=seed)), dtype=None, numerics=numerics)


def small_config(**changes: object) -> ModelConfig:
    values: dict[str, object] = dict(
        vocab_size=96,
        hidden_size=128,
        num_attention_heads=4,
        head_dim=96,
        qk_rope_head_dim=32,
        q_lora_rank=64,
        o_groups=2,
        o_lora_rank=32,
        index_n_heads=4,
        index_head_dim=64,
        index_topk=24,
        n_routed_experts=6,
        moe_intermediate_size=64,
        sliding_window=128,
        expert_dtype="fp4",
        linear_dtype="fp8",
    )
    return tiny_config(**(values | changes))


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_the_definition_on_random_networks(seed: int) -> None:
    """All kinds of layers, odd widths, hash and learned routing; whole, in chunks, then token by token."""
    config = random_config(seed)
    model = random_network(config, seed)
    draw = random.Random(seed)
    tokens = random_tokens(config, draw.choice([1, 3, 130, 131, 257, 300]), seed)
    reference = run(in_pages(model), sequence(config), tokens)
    network = native(model, threads=draw.choice([1, 2]), isa=draw.choice(ISAS))
    cuts = [draw.randrange(len(tokens) + 1) for _ in range(draw.choice([0, 1, 5]))]
    found = run(network, sequence(config), tokens, [*cuts, *range(len(tokens) - 6, len(tokens))])
    assert (found - reference).abs().max() <= 1e-4 * max(1.0, float(reference.abs().max()))


def shaken(config: ModelConfig, by: float) -> Transformer:
    """The network with its embedding off by a relative error of `by`."""
    weights = dict(random_weights(config, seed=1))
    embedding = weights["embed.weight"]
    assert isinstance(embedding, np.ndarray)
    noise = 1 + by * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    return load_transformer(config, weights | {"embed.weight": to_tensor(embedding).float() * noise})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", [CacheFormat(), CacheFormat("fp8", "fp4"), CacheFormat("fp8", "fp8")], ids=str)
@pytest.mark.parametrize(("exact", "precision"), [(True, 2.0**-16), (False, 2.0**-8)])
def test_agrees_with_the_definition_at_official_precision(
    isa: str, kv: CacheFormat, exact: bool, precision: float
) -> None:
    """With FP4 and FP8 roundings in it, a random network is chaotic: one flipped rounding or expert changes all that
    follows. So the native network must be as close to the definition as the definition is to itself when its embedding
    is off by the kernels' precision; and before the first flip, far closer."""
    config = small_config()
    tokens = random_tokens(config, 400, 3)
    model = quantised(config)
    reference = run(in_pages(model), sequence(config, kv), tokens, [200])
    chaos = _distance(run(in_pages(shaken(config, precision)), sequence(config, kv), tokens, [200]), reference)
    error = _distance(run(native(model, isa=isa, exact=exact), sequence(config, kv), tokens, [200]), reference)
    assert error.square().mean().sqrt() < 1.5 * chaos.square().mean().sqrt()
    if exact:
        assert error[:20].median() < 1e-5


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    """Relative error of each row."""
    return (found - expected).square().mean(-1).sqrt() / expected.square().mean().sqrt()


@pytest.mark.parametrize("isa", ISAS)
def test_exact_precision_follows_the_definition_through_packed_weights(isa: str) -> None:
    config = small_config()
    model = quantised(config, numerics=Numerics.none())
    tokens = random_tokens(config, 300, 4)
    reference = run(in_pages(model), sequence(config), tokens)
    found = run(native(model, isa=isa), sequence(config), tokens, [129])
    assert (found - reference).abs().max() <= 1e-4 * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("kv", [EXACT, CacheFormat(), CacheFormat("fp8", "fp4")], ids=str)
def test_cuts_and_threads_change_no_bit(kv: CacheFormat) -> None:
    config = small_config()
    model = quantised(config)
    tokens = random_tokens(config, 520, 5)
    whole = sequence(config, kv)
    expected = run(native(model, threads=1), whole, tokens)
    draw = random.Random(9)
    for cuts in ([], [1], [2, 3, 4, 127, 128], [129, 130, 255, 256, 257], [383, 385, 511, 513], range(500, 520)):
        state = sequence(config, kv)
        assert torch.equal(run(native(model, threads=draw.choice([1, 2, 3])), state, tokens, list(cuts)), expected)
        for page, other in zip(state.pages, whole.pages, strict=True):
            assert np.array_equal(page.data, other.data)
        for name, tensor in whole.export().tail.items():
            assert np.array_equal(state.export().tail[name], tensor), name


def test_the_batch_changes_no_bit() -> None:
    config = small_config()
    network = native(quantised(config))
    lengths = (1, 3, 64, 127, 128, 131, 259)
    prompts = [random_tokens(config, length + 3, length) for length in lengths]
    alone = [
        run(network, sequence(config), prompt, range(length, length + 3))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    states = [sequence(config) for _ in prompts]
    together: list[list[Tensor]] = [[] for _ in prompts]
    for first, last in [(0, -3), (-3, -2), (-2, -1), (-1, None)]:
        parts = [prompt[first:last] for prompt in prompts]
        segments = [Segment(state, len(part)) for state, part in zip(states, parts, strict=True)]
        for number, rows in enumerate(
            network.logits(network(torch.cat(parts), segments)).split([len(p) for p in parts])
        ):
            together[number].append(rows.clone())
    for expected, rows in zip(alone, together, strict=True):
        assert torch.equal(torch.cat(rows), expected)


@pytest.mark.parametrize("length", [1, 4, 127, 128, 130, 255, 256, 257, 384, 513])
def test_a_fork_a_restore_and_a_mix_with_the_definition_go_on_alike(length: int) -> None:
    config = small_config()
    model = quantised(config, numerics=Numerics.none())
    network = native(model)
    tokens = random_tokens(config, length + 9, length)
    base = sequence(config)
    run(network, base, tokens[:length])
    fork = base.fork()
    restored = Sequence.restore(base.pool, base.export(), dtype=np.float32)
    expected = run(network, base, tokens[length:])
    assert torch.equal(run(network, fork, tokens[length:], range(9)), expected)
    assert torch.equal(run(network, restored, tokens[length:], [2]), expected)
    # Half by the definition, half natively: the live form is left and taken up again.
    mixed = sequence(config)
    run(network, mixed, tokens[: length - length // 2])
    if length > 1:
        run(in_pages(model), mixed, tokens[length - length // 2 : length])
    found = run(network, mixed, tokens[length:])
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    base.pool.check_integrity([s.pages for s in (base, fork, restored)])


def test_truncate_after_native_steps_replays_to_the_same_state() -> None:
    config = small_config()
    network = native(quantised(config))
    tokens = random_tokens(config, 600, 8)
    state = sequence(config)
    run(network, state, tokens[:300])
    state.keep_tail()
    expected = run(network, state, tokens[300:])
    replay = state.truncate(330)
    assert state.length == 300 and replay.tolist() == tokens[300:330].tolist()
    assert torch.equal(run(network, state, tokens[300:], [330]), expected)


def test_a_step_that_fails_leaves_every_sequence_as_it_was() -> None:
    config = small_config()
    network = native(quantised(config))
    tokens = random_tokens(config, 80, 2)
    state, other = sequence(config), sequence(config, limit=1)
    for one in (state, other):
        run(network, one, tokens[:40])
    before = state.export()
    with pytest.raises(CacheFull):
        network(torch.cat([tokens[40:], random_tokens(config, 300, 1)]), [Segment(state, 40), Segment(other, 300)])
    with pytest.raises(ValueError, match="token ids must be from 0 to 95"):
        network(torch.tensor([5, 96]), [Segment(state, 2)])
    with pytest.raises(ValueError, match="one length"):
        network(torch.tensor([5]), [Segment(state, 2)])
    with pytest.raises(ValueError, match="two segments"):
        network(torch.tensor([5, 6]), [Segment(state, 1), Segment(state, 1)])
    with pytest.raises(TypeError, match="pages"):
        network(torch.tensor([5]), [Segment(PlainState(config), 1)])
    after = state.export()
    assert after.length == before.length == 40 and np.array_equal(after.tokens, before.tokens)
    assert all(np.array_equal(after.tail[name], tensor) for name, tensor in before.tail.items())
    fresh = sequence(config)
    assert torch.equal(run(network, state, tokens[40:]), run(network, fresh, tokens)[40:])


@pytest.mark.parametrize("length", [1, 5, 90, 140, 300])
def test_traces_are_those_of_the_definition(length: int) -> None:
    config = small_config()
    model = quantised(config, numerics=Numerics.none())
    tokens = random_tokens(config, length, length)
    expected, found = Observer(), Observer()
    with torch.inference_mode():
        in_pages(model)(tokens, [Segment(sequence(config), length)], expected)
        native(model)(tokens, [Segment(sequence(config), length)], found)
    assert len(found.traces) == len(expected.traces) == config.num_hidden_layers
    for ours, theirs in zip(found.traces, expected.traces, strict=True):
        assert (ours.layer, ours.segment, ours.ratio) == (theirs.layer, theirs.segment, theirs.ratio)
        assert torch.equal(ours.entries, theirs.entries)
        torch.testing.assert_close(ours.entry_mass, theirs.entry_mass, atol=2e-4, rtol=0)
        torch.testing.assert_close(ours.window_mass, theirs.window_mass, atol=2e-4, rtol=0)


def test_traces_stand_in_the_order_of_the_segments() -> None:
    """Whatever the order in which sequences that share pages are worked on."""
    config = small_config()
    network = native(quantised(config))
    base = sequence(config)
    run(network, base, random_tokens(config, 600, 1))
    states = [base]
    for number in range(6):
        states.append(states[-1 if number % 2 else 0].fork())
        run(network, states[-1], random_tokens(config, 150 * (number + 1), number))
    order = random.Random(3).sample(states, len(states))
    observer = Observer()
    with torch.inference_mode():
        network(random_tokens(config, len(order), 9), [Segment(state, 1) for state in order], observer)
    expected = [(layer, segment) for layer in range(config.num_hidden_layers) for segment in range(len(order))]
    assert [(trace.layer, trace.segment) for trace in observer.traces] == expected


def test_the_steady_state_asks_for_no_memory() -> None:
    config = small_config()
    network = native(quantised(config), threads=1)  # which of several works first is chance
    state = sequence(config)
    run(network, state, random_tokens(config, 300, 1))
    run(network, state, random_tokens(config, 20, 2), range(20))
    held = network.runtime.growths, network.runtime.scratch_bytes
    run(network, state, random_tokens(config, 150, 3), range(150))
    assert (network.runtime.growths, network.runtime.scratch_bytes) == held


def test_the_profile_names_every_operation() -> None:
    config = small_config()
    network = native(quantised(config))
    run(network, sequence(config), random_tokens(config, 200, 1))
    profile = network.profile()
    assert {"embed", "hyper", "project", "compress", "index", "attend", "output", "experts", "head"} <= set(profile)
    assert all(seconds > 0 for seconds in profile.values())
    seen, scored = network.index_counters()
    assert 0 < scored <= seen
    network.reset_profile()
    assert not any(network.profile().values())


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there are: .*portable"):
        native(quantised(small_config()), isa="sse9")
