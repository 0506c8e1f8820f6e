"""Named shapes of the published models, the model in the box, and two for measuring."""

from __future__ import annotations

from collections.abc import Mapping

from foveal.config.model import CSA_RATIO, HCA_RATIO, ConfigError, ModelConfig


def _flash() -> ModelConfig:
    return ModelConfig(
        vocab_size=129280,
        hidden_size=4096,
        num_hidden_layers=43,
        num_attention_heads=64,
        head_dim=512,
        qk_rope_head_dim=64,
        q_lora_rank=1024,
        o_groups=8,
        o_lora_rank=1024,
        compress_ratios=(0, 0, *(CSA_RATIO, HCA_RATIO) * 20, CSA_RATIO, 0),
        index_n_heads=64,
        index_head_dim=128,
        index_topk=512,
        n_routed_experts=256,
        num_experts_per_tok=6,
        moe_intermediate_size=2048,
        num_hash_layers=3,
        routed_scaling_factor=1.5,
    )


def _pro() -> ModelConfig:
    return _flash().replace(
        hidden_size=7168,
        num_hidden_layers=61,
        num_attention_heads=128,
        q_lora_rank=1536,
        o_groups=16,
        compress_ratios=(HCA_RATIO, HCA_RATIO, *(CSA_RATIO, HCA_RATIO) * 29, CSA_RATIO, 0),
        index_topk=1024,
        n_routed_experts=384,
        moe_intermediate_size=3072,
        routed_scaling_factor=2.5,
    )


def _base(model: ModelConfig) -> ModelConfig:
    return model.replace(expert_dtype="fp8", scale_dtype="float32")


def _nano() -> ModelConfig:
    """The model in the box: see docs/nano.md for why it has this shape."""
    return ModelConfig(
        vocab_size=4096,
        hidden_size=384,
        num_hidden_layers=4,
        num_attention_heads=5,
        head_dim=512,
        qk_rope_head_dim=32,
        q_lora_rank=352,
        o_groups=1,
        o_lora_rank=320,
        compress_ratios=(0, 0, CSA_RATIO, HCA_RATIO),
        index_n_heads=4,
        index_head_dim=256,
        index_topk=1024,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        num_hash_layers=1,
        routed_scaling_factor=1.5,
        num_nextn_predict_layers=0,
    )


def _nano_bench() -> ModelConfig:
    return ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        head_dim=64,
        qk_rope_head_dim=16,
        q_lora_rank=128,
        o_groups=2,
        o_lora_rank=64,
        compress_ratios=(0, 0, *(CSA_RATIO, HCA_RATIO) * 3),
        index_n_heads=4,
        index_head_dim=64,
        index_topk=128,
        n_routed_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        num_hash_layers=1,
        routed_scaling_factor=1.5,
        num_nextn_predict_layers=0,
    )


def _flash_slice() -> ModelConfig:
    return _flash().replace(
        vocab_size=8192,
        num_hidden_layers=4,
        compress_ratios=(0, CSA_RATIO, HCA_RATIO, CSA_RATIO),
        n_routed_experts=32,
        num_hash_layers=1,
        num_nextn_predict_layers=0,
    )


PRESETS: Mapping[str, ModelConfig] = {
    "flash": _flash(),
    "pro": _pro(),
    "flash-base": _base(_flash()),
    "pro-base": _base(_pro()),
    "nano": _nano(),
    "nano-bench": _nano_bench(),
    "flash-slice": _flash_slice(),
}
"""Named shapes: the four published models, the model in the box, and the two measuring shapes."""


def preset(name: str) -> ModelConfig:
    """The config called `name`. Raises `ConfigError` listing the names there are."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}") from None
