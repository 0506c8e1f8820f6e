"""Random tiny networks.

`random_config` draws a shape from a seed, odd sizes included; `random_network` fills every parameter and buffer with
values that matter (no zeros, no ones), so that a term that is left out shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveal.cache import CacheFormat, CacheLayout, PagePool
from foveal.cache import Sequence as CachedSequence
from foveal.config import ModelConfig, YarnScaling
from foveal.engine.native import NativeNetwork
from foveal.formats import Weight
from foveal.model import PlainState, Segment, SequenceState, Transformer
from foveal.ops import Backend, Numerics, cpu, reference


def tiny_config(**changes: Any) -> ModelConfig:
    """A shape of which every size is different, so that no axis can be taken for another."""
    values: dict[str, Any] = dict(
        vocab_size=97,
        hidden_size=40,
        num_hidden_layers=4,
        num_attention_heads=6,
        head_dim=24,
        qk_rope_head_dim=8,
        q_lora_rank=20,
        o_groups=3,
        o_lora_rank=14,
        compress_ratios=(0, 4, 128, 4),
        index_n_heads=32,
        index_head_dim=16,
        index_topk=12,
        n_routed_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=28,
        num_hash_layers=1,
        routed_scaling_factor=1.5,
        sliding_window=32,
        num_nextn_predict_layers=0,
        rope_scaling=YarnScaling(factor=16.0, original_max_position_embeddings=256),
        expert_dtype="bf16",
        linear_dtype="bf16",
    )
    return ModelConfig(**values | changes)


def random_config(seed: int) -> ModelConfig:
    """A shape drawn from `seed`: all kinds of layers in any order, all optional parts on or off, awkward sizes."""
    draw = random.Random(seed)
    layers = draw.randint(1, 4)
    groups = draw.randint(1, 4)
    index_head_dim = draw.choice([8, 16, 32])
    head_dim = draw.choice([8, 12, 16, 24, 40, 72])
    narrowest = min(head_dim, index_head_dim)
    hidden = draw.choice([17, 24, 40, 50, 64])
    experts = draw.randint(1, 9)
    return ModelConfig(
        vocab_size=draw.choice([31, 64, 130]),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=groups * draw.randint(1, 3),
        head_dim=head_dim,
        qk_rope_head_dim=draw.choice([2, narrowest // 4 * 2, narrowest]),
        q_lora_rank=draw.choice([5, 16, 21, hidden]),
        o_groups=groups,
        o_lora_rank=draw.choice([3, 8, 18]),
        compress_ratios=tuple(draw.choice([0, 4, 4, 128]) for _ in range(layers)),
        index_n_heads=draw.choice([32, 37]),
        index_head_dim=index_head_dim,
        index_topk=draw.choice([1, 5, 16, 512]),
        n_routed_experts=experts,
        num_experts_per_tok=draw.choice([1, (experts + 1) // 2, experts]),
        moe_intermediate_size=draw.choice([9, 16, 30]),
        num_hash_layers=draw.randint(0, layers),
        routed_scaling_factor=draw.choice([0.7, 1.5, 2.5]),
        sliding_window=draw.choice([2, 5, 16, 33, 128]),
        swiglu_limit=draw.choice([0.3, 1.0, 10.0]),
        hc_mult=draw.choice([1, 2, 3, 4]),
        hc_sinkhorn_iters=draw.choice([1, 4, 20]),
        hc_eps=draw.choice([1e-6, 1e-3]),
        rms_norm_eps=draw.choice([1e-6, 1e-2]),
        rope_theta=draw.choice([100.0, 10000.0]),
        compress_rope_theta=draw.choice([500.0, 160000.0]),
        rope_scaling=draw.choice([None, _random_yarn(draw), _random_yarn(draw)]),
        num_nextn_predict_layers=0,
        expert_dtype="bf16",
        linear_dtype="bf16",
    )


def _random_yarn(draw: random.Random) -> YarnScaling:
    return YarnScaling(
        factor=draw.choice([1.0, 4.0, 16.0, 40.5]),
        original_max_position_embeddings=draw.choice([5, 64, 1000, 65536]),
        beta_fast=draw.choice([8.0, 32.0]),
        beta_slow=draw.choice([0.5, 1.0, 2.0]),
    )


def random_network(
    config: ModelConfig, seed: int, numerics: Numerics | None = None, ops: Backend = reference
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
    """The same with the operations of `foveal.ops.cpu`, one by one."""
    parts = [module for module in model.modules() if hasattr(module, "ops")]
    before = [module.ops for module in parts]
    for module in parts:
        module.ops = cpu
    try:
        return logits(model, tokens, cuts)
    finally:
        for module, ops in zip(parts, before, strict=True):
            module.ops = ops


def native_logits(model: Transformer, tokens: Tensor, cuts: Sequence[int] = ()) -> Tensor:
    """The same in one native call a piece, on a sequence in fp32 pages."""
    network = NativeNetwork(model)
    layout = CacheLayout(model.config, CacheFormat(kv="fp32", index="fp32"))
    state = CachedSequence(PagePool(layout), dtype=torch.float32)
    with torch.inference_mode():
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
