"""What `foveal.checkpoint.random_weights` makes of a network."""

import torch
from checkpoint_support import CONFIG

from foveal.checkpoint import random_weights
from foveal.model.state import PlainState, Segment
from foveal.model.weights import load_transformer


def test_a_random_network_keeps_its_activations_in_size_and_its_streams_apart():
    config = CONFIG.replace(num_hidden_layers=12, compress_ratios=(0, *(4, 128) * 5, 4, 0))
    model = load_transformer(config, dict(random_weights(config)), dtype=torch.float32)
    seen: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens = torch.arange(140) % config.vocab_size
    streams = model(tokens, [Segment(PlainState(config), len(tokens))])
    sizes = [output.pow(2).mean().sqrt().item() for output in seen]
    assert all(1 <= size <= 5 for size in sizes), sizes
    assert all(output.std(1).mean() > 0.05 for output in seen)
    assert 0.5 < model.logits(streams).std() < 2
