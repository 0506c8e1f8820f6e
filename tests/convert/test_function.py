"""The converted network computes what the source computes, for as long as the text fits the raw window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from convert_support import llama_config, one_direction, random_tokens, save_folder, transformers_source
from helpers.hugging_face import transformers_logits, transformers_model
from helpers.networks import logits, native_logits

from foveal.config import Numerics
from foveal.convert import Llama, Source
from foveal.convert.build import converted_weights
from foveal.convert.fitting import Moments, fit_moments
from foveal.convert.hugging_face import read_folder
from foveal.convert.layout import RAW_WINDOW, Layout
from foveal.model import Transformer
from foveal.model.weights import load_parameters

WITHIN = RAW_WINDOW + 1
CLOSE = 1e-2
"""Greatest difference of a logit, in standard deviations of the logits. What is left is the epsilon of the source's
norm, which V4's second norm takes back, and the keys' and values' part in the norm of a head."""


def fitted(source: Source, folder: Path) -> Moments:
    rows = torch.stack([random_tokens(64, source.shape.vocab_size, seed) for seed in range(8)])
    return fit_moments(Llama(source), rows, folder, "test")


def converted(
    source: Source, folder: Path, window: int = RAW_WINDOW, pairs_per_frequency: int | None = None
) -> Transformer:
    """The network of `source`, fp32, no quantisation simulated."""
    layout = Layout(source.shape, pairs_per_frequency) if pairs_per_frequency else Layout.of(source.shape)
    config = layout.config(window)
    model = Transformer(config, numerics=Numerics.none())
    load_parameters(model, dict(converted_weights(source, fitted(source, folder).attention, layout, config)))
    return model.eval().requires_grad_(False)


def source_of(folder: Path, seed: int = 0, *, alike: bool = True, **changes: Any) -> Source:
    """A random model; `alike`: the groups' keys are multiples of each other at each frequency."""
    theirs = transformers_source(llama_config(**changes), seed)
    if alike:
        one_direction(theirs, seed)
    return read_folder(save_folder(theirs, folder))


SHAPES: dict[str, dict[str, Any]] = {
    "three groups": {},
    "one group": {"num_key_value_heads": 1},
    "a group for each head": {"num_key_value_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 20},
    "wide heads": {"head_dim": 16, "hidden_size": 30},
    "large theta": {"rope_theta": 500000.0},
    "one neuron": {"intermediate_size": 1},
    "even feed-forward": {"intermediate_size": 64},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_same_function_inside_the_window(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = source_of(tmp_path / "model", **changes)
    tokens = random_tokens(WITHIN, 300, 5)
    theirs = Llama(source).logits(tokens[None])[0]
    ours = logits(converted(source, tmp_path), tokens)
    assert (ours - theirs).abs().max() < CLOSE * theirs.std()


def test_groups_that_differ_come_nearer_with_more_pairs(tmp_path: Path) -> None:
    """Random keys of three groups have as much in the second component as in the first: the hardest case there is."""
    source = source_of(tmp_path / "model", alike=False)
    tokens = random_tokens(WITHIN, 300, 5)
    theirs = Llama(source).logits(tokens[None])[0].log_softmax(-1)
    found = []
    for pairs in (4, 32, 256):
        ours = logits(converted(source, tmp_path, pairs_per_frequency=pairs), tokens).log_softmax(-1)
        found.append(float((theirs.exp() * (theirs - ours)).sum(-1).mean()))
    assert found[0] > found[1] > 3 * found[2]


def test_a_wider_window(tmp_path: Path) -> None:
    source = source_of(tmp_path / "model")
    tokens = random_tokens(300, 300, 5)
    theirs = Llama(source).logits(tokens[None])[0]
    model = converted(source, tmp_path, window=300)
    assert set(model.config.compress_ratios) == {0}
    assert (logits(model, tokens) - theirs).abs().max() < CLOSE * theirs.std()


def test_beyond_the_window_the_first_token_stays(tmp_path: Path) -> None:
    """Its entry appears as it leaves the window: the last 127 tokens, and the first of every 128."""
    source = source_of(tmp_path / "model", num_hidden_layers=1)
    tokens, place = random_tokens(400, 300, 5), 390
    ours = logits(converted(source, tmp_path), tokens)[place]
    seen = [0, 128, 256, *range(place - RAW_WINDOW + 1, place + 1)]
    network = Llama(source)
    layer = network.layers[0]
    theirs = _with_positions(network, layer, tokens, seen, place)
    assert (ours - theirs).abs().max() < CLOSE * theirs.std()


def _with_positions(network: Llama, layer: Any, tokens: torch.Tensor, seen: list[int], place: int) -> torch.Tensor:
    """Logits at `place` of a network of one layer that sees only the tokens `seen`."""
    from foveal.convert.llama import normed, turned

    s = network.shape
    stream = network.embed[tokens]
    x = normed(stream, s.rms_norm_eps)
    angles = torch.arange(len(tokens))[:, None] * network.frequencies
    query = turned((x @ layer.q.T).unflatten(-1, (s.heads, -1)).transpose(0, 1), angles)[:, place]
    key = turned((x @ layer.k.T).unflatten(-1, (s.groups, -1)).transpose(0, 1), angles)[:, seen]
    value = (x @ layer.v.T).unflatten(-1, (s.groups, -1)).transpose(0, 1)[:, seen]
    key, value = (part.repeat_interleave(s.heads_per_group, 0) for part in (key, value))
    weights = (torch.einsum("hc,hkc->hk", query, key) * s.head_dim**-0.5).softmax(-1)
    stream = stream[place] + torch.einsum("hk,hkc->hc", weights, value).flatten() @ layer.o.T
    stream = stream + layer.feed_forward(normed(stream, s.rms_norm_eps))
    return normed(stream, s.rms_norm_eps) @ network.head.T


def test_transformers_computes_the_same_of_these_weights(tmp_path: Path) -> None:
    """`DeepseekV4ForCausalLM`, fp32, within the window and beyond it."""
    model = converted(source_of(tmp_path / "model", alike=False), tmp_path)
    tokens = random_tokens(300, 300, 5)
    ours = logits(model, tokens)
    assert (ours - transformers_logits(transformers_model(model), tokens)).abs().max() < 1e-3


def test_the_native_engine_computes_the_same(tmp_path: Path) -> None:
    model = converted(source_of(tmp_path / "model", alike=False), tmp_path)
    tokens = random_tokens(300, 300, 5)
    ours = logits(model, tokens)
    for cuts in ((), (1, 2, 130, 131)):
        assert (native_logits(model, tokens, cuts) - ours).abs().max() < 1e-3


def test_key_channels_are_distinct_and_exact_ones_come_first(tmp_path: Path) -> None:
    for groups in (1, 2, 3, 6):
        layout = Layout.of(source_of(tmp_path / str(groups), num_key_value_heads=groups).shape)
        pairs = layout.pairs()
        assert len(set(pairs.flatten().tolist())) == pairs.numel()
        exact = layout.frequencies[pairs[0]]
        torch.testing.assert_close(exact, torch.tensor(layout.shape.frequencies, dtype=torch.float64))
        assert len(layout.key_channels().unique()) == groups * layout.shape.head_dim
        assert int(layout.key_channels().max()) < layout.width
