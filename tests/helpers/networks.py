"""Random tiny networks.

`random_config` draws a shape from a seed, odd sizes included; `random_network` fills every parameter and buffer with
values that matter (no zeros, no ones), so that a term that is left out shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.backends.cpu.network import NativeNetwork
from foveal.backends.reference import ReferenceRunner
from foveal.backends.reference import native_ops as cpu
from foveal.cache import CacheFormat, CacheLayout, PagePool, contract
from foveal.cache import Sequence as CachedSequence
from foveal.config import ModelConfig, Numerics
from foveal.formats.tensors import Weight, to_tensor, weight_arrays
from foveal.model import LayerTrace, Observer, PlainState, Segment, SequenceState, Transformer, named_weights
from foveal.ops import Operations, reference
from helpers.configs import random_config, tiny_config


def random_network(
    config: ModelConfig, seed: int, numerics: Numerics | None = None, ops: Operations = reference
) -> Transformer:
    """A network of `config`, without quantisation unless `numerics` says so, every tensor random."""
    model = Transformer(config, ops=ops, numerics=numerics or Numerics.none())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            tensor.copy_(_random_values(name, tensor, config, generator))
    return model.eval().requires_grad_(False)


def _random_values(name: str, like: Tensor, config: ModelConfig, generator: torch.Generator) -> Tensor:
    if name.endswith("tid2eid"):
        order = torch.rand(config.vocab_size, config.n_routed_experts, generator=generator).argsort(1)
        return order[:, : config.num_experts_per_tok]
    noise = torch.randn(like.shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + 0.3 * noise
    if name.endswith("_scale"):
        return 1 + 0.3 * noise
    if name.endswith(("_base", "sink", "ape")):
        return noise
    if name.endswith("gate.bias"):
        return 0.3 * noise
    return noise if name == "embed.weight" else noise * like.shape[-1] ** -0.5


def random_tokens(config: ModelConfig, count: int, seed: int) -> Tensor:
    """`count` token ids [count]."""
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def pieces(count: int, cuts: Sequence[int]) -> list[int]:
    """Lengths of the pieces that cutting `count` tokens at `cuts` gives (cuts outside 1..count-1 do nothing)."""
    inside = sorted({cut for cut in cuts if 0 < cut < count})
    return [end - start for start, end in zip([0, *inside], [*inside, count], strict=True)]


def forward(model: Transformer, tokens: Tensor, state: SequenceState, cuts: Sequence[int] = ()) -> Tensor:
    """Streams [n, S, d] of `tokens`, fed to `state` in the pieces that `cuts` makes."""
    parts = tokens.split(pieces(len(tokens), cuts))
    with torch.inference_mode():
        return torch.cat([model(part, [Segment(state, len(part))]) for part in parts])


def logits(model: Transformer, tokens: Tensor, cuts: Sequence[int] = ()) -> Tensor:
    """Logits [n, V] of a new sequence, fed in the pieces that `cuts` makes."""
    with torch.inference_mode():
        return model.logits(forward(model, tokens, PlainState(model.config), cuts))


def cpu_logits(model: Transformer, tokens: Tensor, cuts: Sequence[int] = ()) -> Tensor:
    """The same with the operations of `foveal.backends.reference.native_ops`, one by one."""
    parts = [module for module in model.modules() if hasattr(module, "ops")]
    before = [module.ops for module in parts]
    for module in parts:
        module.ops = cpu
    try:
        return logits(model, tokens, cuts)
    finally:
        for module, ops in zip(parts, before, strict=True):
            module.ops = ops


class OnTensors:
    """A runner as if it worked on tensors: tokens, streams, logits and traces; sequences in pages as they are."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def __call__(self, tokens: Tensor, segments: Any, observer: Observer | None = None) -> Tensor:
        seen: Any = contract.Observer() if observer is not None else None
        streams = self.runner(tokens.numpy(), segments, seen)
        if observer is not None:
            observer.traces += map(_trace, seen.traces)
        return streams if isinstance(streams, Tensor) else to_tensor(streams)

    def logits(self, streams: Tensor) -> Tensor:
        own = isinstance(self.runner, ReferenceRunner)
        return to_tensor(self.runner.logits(streams if own else streams.numpy()))


def _trace(trace: Any) -> LayerTrace:
    masses = map(to_tensor, (trace.entries.copy(), trace.entry_mass.copy(), trace.window_mass.copy()))
    return LayerTrace(trace.layer, trace.segment, trace.ratio, *masses)


def native(model: Transformer, **options: Any) -> Any:
    """`model` on the native kernels, taking and giving tensors (`OnTensors`)."""
    return OnTensors(native_network(model, **options))


def native_network(model: Transformer, **options: Any) -> NativeNetwork:
    """`model` on the native kernels."""
    weights = {name: weight_arrays(weight) for name, weight in named_weights(model)}
    return NativeNetwork(model.config, weights, numerics=model.numerics, **options)


def in_pages(model: Transformer) -> Any:
    """`model` over sequences in pages, taking and giving tensors."""
    return OnTensors(ReferenceRunner(model))


def native_logits(model: Transformer, tokens: Tensor, cuts: Sequence[int] = ()) -> Tensor:
    """The same in one native call a piece, on a sequence in fp32 pages."""
    network = native(model)
    layout = CacheLayout(model.config, CacheFormat(kv="fp32", index="fp32"))
    state = CachedSequence(PagePool(layout), dtype=np.float32)
    parts = tokens.split(pieces(len(tokens), cuts))
    return torch.cat([network.logits(network(part, [Segment(state, len(part))])) for part in parts])


def same_weight(one: Weight, other: Weight) -> bool:
    """Equal to the bit, as it is stored."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Tensor) or isinstance(other, Tensor) or type(one) is not type(other):
        return False
    return torch.equal(one.codes.view(torch.uint8), other.codes.view(torch.uint8)) and torch.equal(
        one.scale.float(), other.scale.float()
    )


__all__ = [
    "OnTensors",
    "cpu_logits",
    "forward",
    "in_pages",
    "logits",
    "native",
    "native_logits",
    "native_network",
    "pieces",
    "random_config",
    "random_network",
    "random_tokens",
    "same_weight",
    "tiny_config",
]
