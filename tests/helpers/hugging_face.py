"""transformers' `DeepseekV4ForCausalLM` with the weights of one of our networks: the outside opinion.

The renaming is written out here on its own, so that it also checks the one in `foveal.checkpoint`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, DynamicCache

from foveal.config import ModelConfig
from foveal.model import Transformer, named_weights

from .networks import pieces

_STORED = ("quantization_config", "expert_dtype", "linear_dtype", "scale_dtype")

_RENAMES = (
    (r"^embed\.", "model.embed_tokens."),
    (r"^head\.", "lm_head."),
    (r"^norm\.", "model.norm."),
    (r"^hc_head_(\w+)$", r"model.hc_head.hc_\1"),
    (r"^layers\.", "model.layers."),
    (r"\.hc_(attn|ffn)_(\w+)$", r".\1_hc.\2"),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.attn_sink$", ".sinks"),
    (r"\.indexer\.compressor\.", ".compressor.indexer."),
    (r"\.self_attn\.indexer\.wq_b", ".self_attn.compressor.indexer.q_b_proj"),
    (r"\.self_attn\.indexer\.weights_proj", ".self_attn.compressor.indexer.scorer.weights_proj"),
    (r"(compressor(?:\.indexer)?)\.norm\.", r"\1.kv_norm."),
    (r"\.ape$", ".position_bias"),
    (r"\.wq_a\.", ".q_a_proj."),
    (r"\.wq_b\.", ".q_b_proj."),
    (r"\.q_norm\.", ".q_a_norm."),
    (r"\.wkv\.", ".kv_proj."),
    (r"\.wgate\.", ".gate_proj."),
    (r"\.wo_a\.", ".o_a_proj."),
    (r"\.wo_b\.", ".o_b_proj."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.shared_experts\.w1\.", ".shared_experts.gate_proj."),
    (r"\.shared_experts\.w2\.", ".shared_experts.down_proj."),
    (r"\.shared_experts\.w3\.", ".shared_experts.up_proj."),
)
_EXPERT = re.compile(r"^layers\.(\d+)\.ffn\.experts\.(\d+)\.(w[123])\.weight$")


def transformers_config(config: ModelConfig, **changes: Any) -> DeepseekV4Config:
    """What transformers reads out of the official ``config.json`` of `config` (stored unquantised)."""
    official = {key: value for key, value in config.to_dict().items() if key not in _STORED}
    theirs = DeepseekV4Config(**official | changes)
    theirs._attn_implementation = "eager"
    theirs._experts_implementation = "eager"
    return theirs


def transformers_weights(model: Transformer) -> dict[str, Tensor]:
    """Our weights under transformers' names: renamed, and the experts stacked, w1 over w3."""
    renamed: dict[str, Tensor] = {}
    experts: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, weight in named_weights(model):
        assert isinstance(weight, Tensor)
        if match := _EXPERT.match(name):
            experts.setdefault((match[1], match[3]), {})[int(match[2])] = weight
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    for layer in {layer for layer, _ in experts}:
        w1, w2, w3 = (torch.stack([stack[e] for e in sorted(stack)]) for stack in _stacks(experts, layer))
        renamed[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat([w1, w3], dim=1)
        renamed[f"model.layers.{layer}.mlp.experts.down_proj"] = w2
    return renamed


def _stacks(experts: dict[tuple[str, str], dict[int, Tensor]], layer: str) -> list[dict[int, Tensor]]:
    return [experts[layer, matrix] for matrix in ("w1", "w2", "w3")]


def transformers_model(model: Transformer, **changes: Any) -> DeepseekV4ForCausalLM:
    """transformers' model with exactly our weights, fp32, eager. Every tensor of theirs comes from one of ours."""
    theirs = DeepseekV4ForCausalLM(transformers_config(model.config, **changes)).to(torch.float32)
    _widen_shared_experts(theirs, model.config)
    theirs.load_state_dict(transformers_weights(model), strict=True)
    return theirs.eval().requires_grad_(False)


def _widen_shared_experts(theirs: DeepseekV4ForCausalLM, config: ModelConfig) -> None:
    """transformers ignores `n_shared_experts`; give its shared expert the width ours has."""
    if config.n_shared_experts == 1:
        return
    width = config.n_shared_experts * config.moe_intermediate_size
    for layer in theirs.model.layers:
        shared = layer.mlp.shared_experts
        shared.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        shared.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        shared.down_proj = nn.Linear(width, config.hidden_size, bias=False)


def transformers_logits(theirs: DeepseekV4ForCausalLM, tokens: Tensor, cuts: Sequence[int] = ()) -> Tensor:
    """Logits [n, V] of `tokens` [n]: in one call without a cache, or in the pieces that `cuts` makes, with one."""
    parts = tokens.split(pieces(len(tokens), cuts))
    cache = DynamicCache(config=theirs.config) if len(parts) > 1 else None
    with torch.inference_mode():
        each = [
            theirs(input_ids=part[None], past_key_values=cache, use_cache=cache is not None).logits[0] for part in parts
        ]
    return torch.cat(each)
