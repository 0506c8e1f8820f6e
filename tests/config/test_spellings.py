"""What a ``config.json`` may say: computed as transformers and the official code do, or refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.hugging_face import transformers_config, transformers_logits, transformers_weights
from helpers.networks import logits, random_network, random_tokens, tiny_config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveal.config import ConfigError, ModelConfig, YarnScaling, preset, read_fields
from foveal.config.frequencies import frequencies_of

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers", minversion="5.23")

TINY = tiny_config()
SAVED = transformers_config(TINY).to_dict()
FLASH = preset("flash").to_dict()


def saved(**changes: Any) -> dict[str, Any]:
    """What transformers saves of a tiny model, with changes."""
    return copy.deepcopy(SAVED) | changes


def read(data: dict[str, Any]) -> ModelConfig:
    """Ours, without the MTP block that transformers announces and leaves out."""
    config = ModelConfig.from_dict(data)
    return config.replace(num_nextn_predict_layers=0, compress_ratios=config.compress_ratios[:4])


def rotary_of(data: dict[str, Any]) -> Any:
    """transformers' rotary module as its model has it: made after those of the layers, which complete the config."""
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding

    config = transformers.DeepseekV4Config(**copy.deepcopy(data))
    DeepseekV4RotaryEmbedding(config)
    return DeepseekV4RotaryEmbedding(config)


def agrees(data: dict[str, Any]) -> bool:
    """Whether `data` is computed; then it is as transformers computes it."""
    try:
        config = read(data)
    except ConfigError:
        return False
    theirs = rotary_of(data)
    for layer, kind in ((0, "main"), (1, "compress")):
        ours = torch.from_numpy(frequencies_of(config, layer))
        assert getattr(theirs, f"{kind}_attention_scaling") == pytest.approx(1.0, abs=1e-12), kind
        torch.testing.assert_close(ours, getattr(theirs, f"{kind}_inv_freq"), rtol=3e-7, atol=0)
    return True


# ---------------------------------------------------------------------- rotary settings

KINDS = st.sampled_from(["default", "yarn", "linear", "dynamic", "longrope", "llama3"])
FACTORS = st.sampled_from([None, 1.0, 4.0, 16.0])
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": KINDS,
        "type": KINDS,
        "rope_theta": st.sampled_from([100.0, 10000.0, 160000.0]),
        "factor": FACTORS,
        "original_max_position_embeddings": st.sampled_from([64, 256]),
        "partial_rotary_factor": st.sampled_from([8 / 24, 0.25, 0.5, 1.0]),
        "attention_factor": st.sampled_from([None, 1.0, 1.2, 1]),
        "mscale": st.sampled_from([None, 0.0, 0.707, 1.0]),
        "mscale_all_dim": st.sampled_from([None, 0.0, 0.707, 1.0]),
        "beta_fast": st.sampled_from([None, 32, 8.0]),
        "beta_slow": st.sampled_from([None, 1, 2.0]),
        "truncate": st.booleans(),
    },
)
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256, "rope_theta": 160000.0}
PART = {"partial_rotary_factor": 8 / 24}
MAIN = {"rope_type": "default", "rope_theta": 10000.0, **PART}


@settings(max_examples=60)
@given(main=SETTINGS, compress=SETTINGS, top=st.sampled_from([None, 8 / 24, 0.5]), legacy=st.booleans())
@example(main=MAIN, compress={**YARN, **PART}, top=None, legacy=False)
@example(main=MAIN, compress={**YARN, **PART, "attention_factor": 1.0, "mscale": 0.707}, top=None, legacy=False)
@example(main={**MAIN, "rope_type": "linear", "factor": 4.0}, compress={**YARN, **PART}, top=None, legacy=True)
def test_nested_settings_are_computed_or_refused(
    main: dict[str, Any], compress: dict[str, Any], top: float | None, legacy: bool
) -> None:
    data = saved(rope_parameters={"main": main, "compress": compress}, partial_rotary_factor=top)
    if legacy:
        data["qk_rope_head_dim"] = 8
    agrees(data)


@settings(max_examples=40)
@given(raw=SETTINGS, name=st.sampled_from(["rope_scaling", "rope_parameters"]), factor=st.sampled_from([None, 8 / 24]))
def test_flat_settings_are_computed_or_refused(raw: dict[str, Any], name: str, factor: float | None) -> None:
    data = saved(qk_rope_head_dim=8, partial_rotary_factor=factor, rope_theta=10000.0, compress_rope_theta=160000.0)
    del data["rope_parameters"]
    agrees(data | {name: raw})


COMPUTED: dict[str, dict[str, Any]] = {
    "as transformers saves it": {"main": MAIN, "compress": {**YARN, **PART, "attention_factor": 1.0}},
    "equal mscales": {"main": MAIN, "compress": {**YARN, **PART, "mscale": 0.707, "mscale_all_dim": 0.707}},
    "yarn of factor 1": {"main": MAIN, "compress": {**YARN, **PART, "factor": 1.0}},
    "no yarn": {"main": MAIN, "compress": {**MAIN, "rope_theta": 500.0}},
    "the main base in both": {"main": MAIN, "compress": {"rope_type": "default", **PART}},
}


@pytest.mark.parametrize("parameters", COMPUTED.values(), ids=COMPUTED)
def test_logits_are_those_of_transformers(parameters: dict[str, Any]) -> None:
    data = saved(rope_parameters=copy.deepcopy(parameters))
    model = random_network(read(data), 3)
    theirs = transformers.DeepseekV4ForCausalLM(
        transformers.DeepseekV4Config(**copy.deepcopy(data), attn_implementation="eager")
    )
    theirs.load_state_dict(transformers_weights(model), strict=True)
    tokens = random_tokens(model.config, 150, 3)
    torch.testing.assert_close(
        logits(model, tokens), transformers_logits(theirs.float().eval(), tokens), rtol=0, atol=1e-4
    )


ROTARY_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no attention factor": ({"main": MAIN, "compress": {**YARN, **PART}}, r"compress\.attention_factor 1\.277"),
    "mscale": (
        {"main": MAIN, "compress": {**YARN, **PART, "mscale": 0.707, "mscale_all_dim": 1.0}},
        r"compress\.attention_factor",
    ),
    "main linear": (
        {"main": {**MAIN, "rope_type": "linear", "factor": 2.0}, "compress": {**MAIN}},
        r"main\.rope_type 'linear'",
    ),
    "other fraction": (
        {"main": {**MAIN, "partial_rotary_factor": 0.5}, "compress": {**MAIN}},
        r"main\.partial_rotary_factor 0\.5",
    ),
    "half of it": ({"compress": {**YARN, **PART}}, "both 'main' and 'compress'"),
    "no object": ([1], "must be an object"),
}


@pytest.mark.parametrize(("parameters", "said"), ROTARY_REFUSED.values(), ids=ROTARY_REFUSED)
def test_rotary_settings_that_are_refused(parameters: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ModelConfig.from_dict(saved(rope_parameters=copy.deepcopy(parameters)))


def test_the_inference_code_says_no_yarn_with_a_zero() -> None:
    names = {"original_seq_len": 0, "rope_factor": 16}
    data = {key: value for key, value in preset("flash").to_dict().items() if key != "rope_scaling"}
    assert ModelConfig.from_dict(data | names).rope_scaling is None
    assert ModelConfig.from_dict(data | {"original_seq_len": 4096}).rope_scaling == YarnScaling(
        original_max_position_embeddings=4096
    )
    with pytest.raises(ConfigError, match="give one"):
        ModelConfig.from_dict(preset("flash").to_dict() | names)


# ---------------------------------------------------------------------- other networks

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"norm_topk_prob": False}, "norm_topk_prob", "must be True"),
    ({"num_key_value_heads": 8}, "num_key_value_heads", "must be 1"),
    ({"topk_method": "greedy"}, "topk_method", "must be 'noaux_tc'"),
    ({"n_group": 8, "topk_group": 4}, "n_group", "must be 1"),
    ({"n_expert_groups": 8}, "n_expert_groups", "must be 1"),
    ({"first_k_dense_replace": 3}, "first_k_dense_replace", "must be 0"),
    ({"mscale": 0.707}, "mscale", "must be absent"),
    ({"rope_scaling": {"type": "yarn", "mscale": 0.707}}, "mscale 0.707", "must be absent"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method", "must be 'fp8'"),
    ({"quantization_config": {"weight_block_size": [64, 64]}}, "weight_block_size", r"must be \[128, 128\]"),
    ({"quantization_config": {"activation_scheme": "static"}}, "activation_scheme", "must be 'dynamic'"),
    ({"quantization_config": "fp8"}, "quantization_config", "must be an object"),
    ({"scale_fmt": "float"}, "scale_fmt", "must be 'ue8m0'"),
    ({"attention_bias": True}, "attention_bias", "must be False"),
    ({"attention_bias": 1}, "attention_bias", "must be False"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings", "must be False"),
    ({"hidden_act": "gelu"}, "hidden_act", "must be 'silu'"),
    ({"intermediate_size": 18432}, "intermediate_size", "must be 2048"),
    ({"v_head_dim": 128}, "v_head_dim", "must be 512"),
    ({"hc_post_scale": 2.0}, "hc_post_scale", "must be absent"),
    ({"index_share": True}, "index_share", "must be absent"),
    ({"sliding_window": None}, "sliding_window", "must have a value"),
    ({"swiglu_limit": None}, "swiglu_limit", "must have a value"),
    ({"use_sliding_window": False}, "use_sliding_window", "must be True"),
    ({"eos_token_id": []}, "eos_token_id", "one or more"),
    ({"eos_token_id": [1, True]}, "eos_token_id", "one or more"),
    ({"eos_token_id": [1, 129280]}, "eos_token_id", "below vocab_size"),
    ({"eos_token_id": 129280}, "eos_token_id", "below vocab_size"),
    ({"bos_token_id": -1}, "bos_token_id", ">= 0"),
    ({"layer_types": ["sliding_attention"] * 43}, "layer_types", "differs"),
    ({"layer_types": 7, "compress_ratios": None}, "layer_types", "must hold"),
    ({"layer_types": [[]], "compress_ratios": None}, "layer_types", "must hold"),
    ({"mlp_layer_types": ["moe"] * 43}, "num_hash_layers", "must be 0"),
    ({"mlp_layer_types": ["hash_moe"] * 3, "num_hash_layers": None}, "mlp_layer_types", "must have 43"),
    ({"num_nextn_predict_layers": 10**9, "compress_ratios": [0] * 43}, "num_nextn_predict_layers", "<= 64"),
    ({"hc_sinkhorn_iters": 10**12}, "hc_sinkhorn_iters", "<= 1000"),
    ({"dim": 1, "hidden_size": 4096}, "hidden_size", "give one"),
    ({"rope_scaling": False}, "rope_scaling", "must be an object"),
    ({"rope_scaling": ""}, "rope_scaling", "must be an object"),
    ({"rope_scaling": {"factor": 16, "original_max_position_embeddings": 65536}}, "rope_scaling", "no rope_type"),
    ({"rope_scaling": {"kind": "yarn"}}, "rope_scaling", "no rope_type"),
    ({"rope_scaling": {"type": "yarn", "factor": 10**400, "original_max_position_embeddings": 1}}, "rope_scaling", ""),
    ({"expert_dtype": ""}, "expert_dtype", "'fp4' or"),
    ({"expert_dtype": False}, "expert_dtype", "'fp4' or"),
    ({"linear_dtype": 0}, "linear_dtype", "'fp8' or"),
]


@pytest.mark.parametrize(("changes", "name", "allowed"), REFUSED, ids=lambda part: str(part)[:40])
def test_other_networks_are_refused_by_name(changes: dict[str, Any], name: str, allowed: str) -> None:
    data = preset("flash").to_dict()
    with pytest.raises(ConfigError, match=f"(?s){name}.*{allowed}"):
        ModelConfig.from_dict(data | changes)


def test_every_fault_of_a_config_is_named_at_once() -> None:
    faults = {"norm_topk_prob": False, "n_group": 8, "hidden_act": "gelu", "vocab_size": 0, "rope_theta": -1}
    data = {key: value for key, value in preset("flash").to_dict().items() if key != "head_dim"}
    _, problems = read_fields(data | faults)
    assert len(problems) == 4, "out of range is told only where nothing lacks"
    _, problems = read_fields(preset("flash").to_dict() | faults)
    assert [name for name in faults if not any(f"'{name}'" in problem for problem in problems)] == []
    assert len(problems) == len(faults)


HARMLESS = {
    "torch_dtype": "float32",
    "attention_dropout": 0.1,
    "pad_token_id": 2,
    "use_cache": False,
    "ep_size": 8,
    "dspark_block_size": 4,
    "aux_loss_alpha": 0.1,
    "n_group": None,
    "topk_group": 1,
    "mscale": None,
    "transformers_version": "9",
    "eos_token_id": [1, 7],
    "routed_scaling_factor": 1.5,
    "intermediate_size": 2048,
}


def test_what_does_not_change_the_network_is_accepted() -> None:
    data = preset("flash").to_dict()
    for name, value in HARMLESS.items():
        assert ModelConfig.from_dict(data | {name: value}) == preset("flash"), name


def test_scale_dtype_as_the_inference_code_spells_it() -> None:
    data = preset("flash").to_dict()
    assert ModelConfig.from_dict(data | {"scale_dtype": "fp8"}).scale_dtype == "ue8m0"
    assert ModelConfig.from_dict(data | {"scale_dtype": "fp32"}).scale_dtype == "float32"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**12)
    | st.sampled_from([2**70, 10**400])
    | st.floats(allow_nan=True)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100)
@given(name=st.sampled_from([*FLASH, "rope_parameters", "layer_types", "mlp_layer_types"]), value=JSON)
def test_any_value_of_any_field_is_read_or_refused(name: str, value: Any) -> None:
    for data in (FLASH, SAVED):
        try:
            ModelConfig.from_dict(data | {name: value})
        except ConfigError as error:
            assert error.problems
