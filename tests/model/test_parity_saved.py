"""A model that transformers made and saved, opened by Foveal: same logits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hugging_face import transformers_logits
from helpers.networks import logits
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from foveal.backends.reference import load_model
from foveal.config import Numerics

KINDS = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")


def native_config(seed: int) -> DeepseekV4Config:
    """In transformers' own terms: layer types, rotary parameters and the rotary fraction, nothing from our side."""
    draw = random.Random(seed)
    layers, groups = draw.randint(2, 4), draw.randint(1, 3)
    hashed = draw.randint(0, layers)
    rotary: dict[str, Any] = {"main": {"rope_type": "default", "rope_theta": 900.0, "partial_rotary_factor": 0.5}}
    rotary["compress"] = {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}
    if seed % 2:
        yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "attention_factor": 1.0}
        rotary["compress"] |= yarn
    return DeepseekV4Config(
        vocab_size=71,
        hidden_size=draw.choice([36, 64]),
        moe_intermediate_size=draw.choice([18, 32]),
        num_hidden_layers=layers,
        num_attention_heads=groups * 2,
        head_dim=16,
        q_lora_rank=draw.choice([10, 24]),
        num_experts_per_tok=2,
        n_routed_experts=draw.randint(2, 5),
        n_shared_experts=draw.choice([1, 2]),
        layer_types=[draw.choice(KINDS) for _ in range(layers)],
        mlp_layer_types=["hash_moe"] * hashed + ["moe"] * (layers - hashed),
        rope_parameters=rotary,
        partial_rotary_factor=0.5,
        hc_mult=draw.choice([2, 4]),
        sliding_window=draw.choice([12, 128]),
        o_groups=groups,
        o_lora_rank=9,
        index_n_heads=32,
        index_head_dim=16,
        index_topk=6,
        pad_token_id=None,
        eos_token_id=[1, 2],
    )


@pytest.mark.parametrize("seed", range(6))
def test_saved_by_transformers(tmp_path: Path, seed: int) -> None:
    config = native_config(seed)
    config._attn_implementation = config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(seed)
    theirs = DeepseekV4ForCausalLM(config).to(torch.float32).eval()
    for name, tensor in theirs.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("tid2eid"):
            tensor.copy_(torch.randint(0, config.n_routed_experts, tensor.shape, generator=generator))
        elif tensor.dim() < 2:
            tensor.add_(0.3 * noise)
        else:
            tensor.copy_(noise if "embed" in name or "bias" in name else noise * tensor.shape[-1] ** -0.5)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, numerics=Numerics.none())
    tokens = torch.randint(0, 71, (135,), generator=generator)
    expected = transformers_logits(theirs, tokens)
    assert expected.abs().max() > 0.5
    for cuts in ([], [7, 64, 130, 131, 132]):
        assert (logits(ours, tokens, cuts) - expected).abs().max() <= 1e-4
