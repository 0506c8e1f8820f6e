"""Shapes of tiny networks."""

from __future__ import annotations

import random
from typing import Any

from foveal.config import ModelConfig, YarnScaling


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
