"""The architecture's numbers: what is refused, how it is spelled, and the published shapes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.networks import random_config, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from foveal.config import PRESETS, ConfigError, LayerKind, ModelConfig, YarnScaling, preset

# ---------------------------------------------------------------------- validation

POSITIVE = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads head_dim q_lora_rank o_groups o_lora_rank "
    "index_n_heads index_head_dim index_topk n_routed_experts num_experts_per_tok moe_intermediate_size "
    "n_shared_experts sliding_window hc_mult hc_sinkhorn_iters max_position_embeddings"
).split()
NOT_NEGATIVE = "num_nextn_predict_layers num_hash_layers bos_token_id eos_token_id".split()
NUMBERS = (
    "rope_theta compress_rope_theta routed_scaling_factor swiglu_limit hc_eps rms_norm_eps initializer_range"
).split()


def refused(name: str, value: Any, allowed: str, **others: Any) -> None:
    """The error names the field, shows the value and says what is allowed."""
    with pytest.raises(ConfigError) as error:
        tiny_config(**{name: value}, **others)
    message = str(error.value)
    assert f"'{name}'" in message and repr(value) in message, message
    assert re.search(allowed, message.split("must be")[1]), message


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None])
def test_counts_are_positive_integers(name: str, value: object) -> None:
    refused(name, value, "an integer >= 1")


@pytest.mark.parametrize("name", NOT_NEGATIVE)
@pytest.mark.parametrize("value", [-1, 1.5, False, None])
def test_counts_that_may_be_zero(name: str, value: object) -> None:
    refused(name, value, "an integer >= 0")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -0.5, math.inf, math.nan, True, "1", None, 1e39, 1e-320, 10**400])
def test_numbers_are_positive_and_finite(name: str, value: object) -> None:
    refused(name, value, "a number > 0")


WRONG: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("qk_rope_head_dim", 7, "even integer from 2 to 16", {}),
    ("qk_rope_head_dim", 0, "even integer from 2 to 16", {}),
    ("qk_rope_head_dim", 18, "from 2 to 16", {}),
    ("qk_rope_head_dim", 26, "from 2 to 24", {"index_head_dim": 64}),
    ("qk_rope_head_dim", "8", "even integer", {}),
    ("o_groups", 4, r"divisor of num_attention_heads \(6\)", {}),
    ("index_head_dim", 24, "power of two", {}),
    ("num_experts_per_tok", 6, r"from 1 to n_routed_experts \(5\)", {}),
    ("num_hash_layers", 5, r"from 0 to num_hidden_layers \(4\)", {}),
    ("compress_ratios", (0, 4, 128), "4 numbers", {}),
    ("compress_ratios", (0, 4, 128, 4, 0), "4 numbers", {}),
    ("compress_ratios", (0, 4, 128, 4), "5 numbers", {"num_nextn_predict_layers": 1}),
    ("compress_ratios", (0, 4, 128, 4, 4), "0 for every MTP block", {"num_nextn_predict_layers": 1}),
    ("compress_ratios", (0, 4, 64, 4), "each 0, 4 or 128", {}),
    ("compress_ratios", [0, 4, 128, 4], "a tuple", {}),
    ("compress_ratios", (0, 4, 128, "4"), "each 0, 4 or 128", {}),
    ("compress_ratios", (0, 4.0, 128, 4), "each 0, 4 or 128", {}),
    ("expert_dtype", "int4", "'fp4' or 'fp8' or 'bf16'", {}),
    ("linear_dtype", "fp4", "'fp8' or 'bf16'", {}),
    ("scale_dtype", "bf16", "'ue8m0' or 'float32'", {}),
    ("hidden_size", 40, "multiple of 32 when expert_dtype is 'fp4'", {"expert_dtype": "fp4"}),
    ("moe_intermediate_size", 28, "multiple of 32", {"expert_dtype": "fp4", "hidden_size": 64}),
    ("rope_scaling", YarnScaling(factor=0.5), "factor >= 1", {}),
    ("rope_scaling", YarnScaling(original_max_position_embeddings=0), "embeddings >= 1", {}),
    ("rope_scaling", YarnScaling(beta_slow=0.0), "beta_slow > 0", {}),
    ("rope_scaling", YarnScaling(factor="16"), "factor >= 1", {}),  # type: ignore[arg-type]
    ("rope_scaling", {"type": "yarn"}, "YarnScaling", {}),
    ("compress_rope_theta", 1.0, "other than 1", {}),
]


@pytest.mark.parametrize(("name", "value", "allowed", "others"), WRONG, ids=lambda part: str(part)[:24])
def test_fields_that_depend_on_others(name: str, value: Any, allowed: str, others: dict[str, Any]) -> None:
    refused(name, value, allowed, **others)


def test_every_field_is_in_some_test_above() -> None:
    tested = {*POSITIVE, *NOT_NEGATIVE, *NUMBERS, *(name for name, *_ in WRONG)}
    assert tested == set(ModelConfig.__dataclass_fields__)


def test_frozen_and_validated_when_replaced() -> None:
    config = tiny_config()
    with pytest.raises(AttributeError):
        config.hidden_size = 41  # type: ignore[misc]
    assert config.replace(hidden_size=41).hidden_size == 41 and config.hidden_size == 40
    with pytest.raises(ConfigError, match="'hc_mult'"):
        config.replace(hc_mult=0)


# ---------------------------------------------------------------------- derived numbers


def test_kinds_and_counts() -> None:
    config = tiny_config(num_nextn_predict_layers=1, compress_ratios=(0, 4, 128, 4, 0))
    kinds = [config.kind(layer) for layer in range(5)]
    assert kinds == [LayerKind.SLIDING, LayerKind.CSA, LayerKind.HCA, LayerKind.CSA, LayerKind.SLIDING]
    assert config.layers_of(LayerKind.CSA) == (1, 3)
    assert config.layers_of(LayerKind.SLIDING) == (0,), "MTP blocks are no main layers"
    assert [config.entries_after(t, 1) for t in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
    assert [config.entries_after(t, 2) for t in (127, 128, 256)] == [0, 1, 2]
    assert config.entries_after(999, 0) == 0
    assert config.nope_head_dim == 16


# ---------------------------------------------------------------------- spellings


@given(st.integers(0, 5000))
def test_dict_and_json_round_trip(seed: int) -> None:
    config = random_config(seed)
    data = config.to_dict()
    assert ModelConfig.from_dict(data) == config
    assert ModelConfig.from_dict(json.loads(json.dumps(data))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip(name: str) -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(preset(name).to_dict()))) == preset(name)


def official(**changes: Any) -> dict[str, Any]:
    """The released config.json of V4-Flash."""
    data: dict[str, Any] = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
        "compress_rope_theta": 160000,
        "eos_token_id": 1,
        "expert_dtype": "fp4",
        "hc_eps": 1e-06,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "head_dim": 512,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 512,
        "initializer_range": 0.02,
        "max_position_embeddings": 1048576,
        "model_type": "deepseek_v4",
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 6,
        "num_hash_layers": 3,
        "num_hidden_layers": 43,
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 1,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": 64,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        },
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 16,
            "original_max_position_embeddings": 65536,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": 128,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.1",
        "use_cache": True,
        "vocab_size": 129280,
    }
    return data | changes


def without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in names}


def test_official_file_is_the_preset() -> None:
    assert ModelConfig.from_dict(official()) == preset("flash")


def test_our_file_has_every_official_field() -> None:
    """And the same values, but for the version of transformers that wrote it."""
    ours, theirs = preset("flash").to_dict(), without(official(), "transformers_version")
    assert {name: ours.get(name) for name in theirs} == theirs


def test_expert_format_when_the_field_is_missing() -> None:
    """FP4 in a quantised model (first instruct releases), BF16 in a plain one; or where transformers puts it."""
    assert ModelConfig.from_dict(without(official(), "expert_dtype")).expert_dtype == "fp4"
    plain = ModelConfig.from_dict(without(official(hidden_size=40), "expert_dtype", "quantization_config"))
    assert (plain.expert_dtype, plain.linear_dtype) == ("bf16", "bf16")
    moved = without(official(), "expert_dtype")
    moved["quantization_config"] = moved["quantization_config"] | {"expert_dtype": "fp8"}
    assert ModelConfig.from_dict(moved).expert_dtype == "fp8"


INFERENCE = {
    "vocab_size": 129280,
    "dim": 4096,
    "moe_inter_dim": 2048,
    "n_layers": 43,
    "n_hash_layers": 3,
    "n_heads": 64,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "n_activated_experts": 6,
    "score_func": "sqrtsoftplus",
    "route_scale": 1.5,
    "swiglu_limit": 10.0,
    "q_lora_rank": 1024,
    "head_dim": 512,
    "rope_head_dim": 64,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "window_size": 128,
    "original_seq_len": 65536,
    "rope_theta": 10000,
    "rope_factor": 16,
    "beta_fast": 32,
    "beta_slow": 1,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "dtype": "fp8",
    "scale_fmt": "ue8m0",
    "expert_dtype": "fp4",
    "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}


def test_names_of_the_inference_code() -> None:
    assert ModelConfig.from_dict(INFERENCE) == preset("flash")


def test_names_of_transformers() -> None:
    """Lists of layer types, nested rotary parameters that win over the defaults beside them, a rotary fraction."""
    kinds = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    data = without(
        official(num_hidden_layers=3), "compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling"
    ) | {
        "layer_types": kinds,
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "partial_rotary_factor": 0.125,
        "rope_theta": 10000.0,
        "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 500.0},
            "compress": {
                "rope_type": "yarn",
                "rope_theta": 7000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 99,
                "attention_factor": 1.0,
            },
        },
        "eos_token_id": [1, 7],
        "n_shared_experts": 3,
    }
    config = ModelConfig.from_dict(data)
    assert config.compress_ratios == (0, 4, 128, 0), "the MTP block is added"
    assert config.n_shared_experts == 1, "transformers builds one, whatever the field says"
    assert (config.num_hash_layers, config.qk_rope_head_dim, config.eos_token_id) == (1, 64, 1)
    assert (config.rope_theta, config.compress_rope_theta) == (500.0, 7000.0)
    assert config.rope_scaling == YarnScaling(factor=4.0, original_max_position_embeddings=99)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}},
        {
            "rope_scaling": None,
            "partial_rotary_factor": 0.125,
            "rope_parameters": {"main": {}, "compress": {"rope_type": "default"}},
        },
    ],
    ids=str,
)
def test_no_yarn(spelling: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(official(**spelling)).rope_scaling is None


def test_yarn_under_both_names_of_its_type() -> None:
    for key in ("type", "rope_type"):
        yarn = {key: "yarn", "factor": 8, "original_max_position_embeddings": 4096}
        config = ModelConfig.from_dict(official(rope_scaling=yarn))
        assert config.rope_scaling == YarnScaling(factor=8, original_max_position_embeddings=4096)
        assert ModelConfig.from_dict(official(rope_scaling=None, rope_parameters=yarn)) == config


def test_shorter_models_have_fewer_hash_layers_by_default() -> None:
    data = without(official(num_hidden_layers=2, compress_ratios=[4, 128]), "num_hash_layers")
    assert ModelConfig.from_dict(data).num_hash_layers == 2


def test_extra_layers_of_later_siblings_are_ignored() -> None:
    assert ModelConfig.from_dict(official(dspark_block_size=4, anything={"x": 1})) == preset("flash")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "deepseek_v3"}, "model_type"),
    ({"scoring_func": "sigmoid"}, "scoring_func"),
    ({"score_func": "softmax"}, "scoring_func"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"compress_rates": {"compressed_sparse_attention": 8, "heavily_compressed_attention": 128}}, "compress_rates"),
    ({"compress_rate_hca": 64}, "compress_rate_hca"),
    ({"compress_ratios": None, "layer_types": ["full_attention"] * 43}, "layer_types"),
    ({"compress_ratios": 4}, "compress_ratios"),
    ({"num_hash_layers": None, "mlp_layer_types": ["moe", "hash_moe"]}, "mlp_layer_types"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
    ({"rope_scaling": {"type": "yarn", "attention_factor": 1.2}}, "attention_factor"),
    ({"rope_scaling": {"type": "yarn", "truncate": False}}, "truncate"),
]


@pytest.mark.parametrize(("changes", "name"), REFUSED, ids=[name for _, name in REFUSED])
def test_other_networks_are_refused(changes: dict[str, Any], name: str) -> None:
    """What would give other numbers than the file means is an error, never a silent approximation."""
    with pytest.raises(ConfigError, match=name):
        ModelConfig.from_dict(official(**changes))


def test_missing_fields_are_all_named() -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(without(official(), "head_dim", "o_groups", "compress_ratios"))
    assert all(name in str(error.value) for name in ("head_dim", "o_groups", "compress_ratios"))
    assert "hidden_size" not in str(error.value)
    with pytest.raises(ConfigError, match="vocab_size"):
        ModelConfig.from_dict({})


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(official()), encoding="utf-8")
    assert ModelConfig.from_file(path) == ModelConfig.from_file(str(path)) == preset("flash")
    for text in ("{", "[]", "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            ModelConfig.from_file(path)
    with pytest.raises(ConfigError, match="absent"):
        ModelConfig.from_file(tmp_path / "absent.json")


# ---------------------------------------------------------------------- presets

SHARED = {
    "vocab_size": 129280,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "o_lora_rank": 1024,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "num_hash_layers": 3,
    "num_nextn_predict_layers": 1,
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": YarnScaling(factor=16, original_max_position_embeddings=65536, beta_fast=32, beta_slow=1),
    "max_position_embeddings": 1048576,
    "linear_dtype": "fp8",
}
"""Published facts that Flash and Pro have in common."""

FLASH = (4096, 43, 64, 1024, 8, 512, 256, 2048, 1.5)
PRO = (7168, 61, 128, 1536, 16, 1024, 384, 3072, 2.5)


def _differing(config: ModelConfig) -> tuple[float, ...]:
    """The numbers of `FLASH` and `PRO`, in their order."""
    return (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.q_lora_rank,
        config.o_groups,
        config.index_topk,
        config.n_routed_experts,
        config.moe_intermediate_size,
        config.routed_scaling_factor,
    )


@pytest.mark.parametrize(("name", "facts"), [("flash", FLASH), ("pro", PRO), ("flash-base", FLASH), ("pro-base", PRO)])
def test_published_models(name: str, facts: tuple[float, ...]) -> None:
    config = preset(name)
    assert {field: getattr(config, field) for field in SHARED} == SHARED
    assert _differing(config) == facts
    base = name.endswith("-base")
    assert (config.expert_dtype, config.scale_dtype) == (("fp8", "float32") if base else ("fp4", "ue8m0"))


def test_published_layer_kinds() -> None:
    """Flash: 2 window-only layers, then CSA (even) and HCA (odd). Pro: HCA 0 and 1, then CSA (even) and HCA (odd)."""
    flash, pro = preset("flash"), preset("pro")
    assert flash.layers_of(LayerKind.SLIDING) == (0, 1)
    assert flash.layers_of(LayerKind.CSA) == tuple(range(2, 43, 2))
    assert flash.layers_of(LayerKind.HCA) == tuple(range(3, 42, 2))
    assert pro.layers_of(LayerKind.SLIDING) == ()
    assert pro.layers_of(LayerKind.CSA) == tuple(range(2, 61, 2))
    assert pro.layers_of(LayerKind.HCA) == (0, 1, *range(3, 60, 2))
    assert len(flash.compress_ratios) == 44 and len(pro.compress_ratios) == 62
    assert flash.kind(43) is pro.kind(61) is LayerKind.SLIDING, "the MTP block"


def test_measuring_shapes() -> None:
    """flash-slice has Flash's widths in four layers, one of each kind and CSA twice."""
    piece, flash = preset("flash-slice"), preset("flash")
    assert piece.compress_ratios == (0, 4, 128, 4)
    assert (piece.vocab_size, piece.n_routed_experts) == (8192, 32)
    for name in ("hidden_size", "head_dim", "num_attention_heads", "q_lora_rank", "moe_intermediate_size", "o_groups"):
        assert getattr(piece, name) == getattr(flash, name)
    for name in ("nano", "nano-bench", "flash-slice"):
        assert preset(name).num_nextn_predict_layers == 0


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'flush'.*flash, pro, flash-base, pro-base, nano"):
        preset("flush")
