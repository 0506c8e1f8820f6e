"""Reading a ``config.json``: three spellings, and what in them Foveal computes.

The spellings are the official ``config.json``, transformers' own saved config, and the official
``inference/config.json``. A field that would make another network is a problem that names it and what is computed;
fields that do not concern the network are not looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from foveal.config.model import CSA_RATIO, HCA_RATIO, MOST_BLOCKS, ConfigError, ModelConfig, is_whole
from foveal.config.rotary import rotary_fields

ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("deepseek_v4",),
    # attention
    "attention_bias": (False,),
    "num_key_value_heads": (1,),
    "kv_lora_rank": (),
    "use_sliding_window": (True,),
    "attn_logit_softcapping": (),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "compress_rate_csa": (CSA_RATIO,),
    "compress_rate_hca": (HCA_RATIO,),
    # experts and their router
    "scoring_func": ("sqrtsoftplus",),
    "topk_method": ("noaux_tc",),
    "norm_topk_prob": (True,),
    "n_group": (1,),
    "topk_group": (1,),
    "n_expert_groups": (1,),
    "n_limited_groups": (1,),
    "first_k_dense_replace": (0,),
    "moe_layer_freq": (1,),
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    # head
    "tie_word_embeddings": (False,),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    # number formats
    "scale_fmt": ("ue8m0",),
    "rope_interleave": (True,),
    "per_layer_config": ({},),
}
"""Field -> the values that mean what Foveal computes. None (null) and a missing field mean the same; with no value
listed the field must be missing."""

ONLY_INSIDE: dict[str, dict[str, tuple[Any, ...]]] = {
    "compress_rates": {"compressed_sparse_attention": (CSA_RATIO,), "heavily_compressed_attention": (HCA_RATIO,)},
    "quantization_config": {
        "quant_method": ("fp8",),
        "fmt": ("e4m3",),
        "activation_scheme": ("dynamic",),
        "scale_fmt": ("ue8m0",),
        "weight_block_size": ([128, 128],),
        "bits": (8,),
    },
}
"""The same for fields inside fields."""

EQUAL = {
    "intermediate_size": "moe_intermediate_size",
    "num_local_experts": "n_routed_experts",
    "v_head_dim": "head_dim",
    "qk_head_dim": "head_dim",
}
"""Fields that transformers or relatives of V4 have for what another field says: they must say the same."""

FAMILIES = ("hc_", "index_", "indexer_", "compress_", "rope_", "swiglu_", "mscale")
"""A field whose name begins so belongs to the network. One that Foveal does not know would change it."""

_KNOWN = {field.name for field in dataclasses.fields(ModelConfig)} | {*ONLY, *ONLY_INSIDE, *EQUAL}
_KNOWN |= {"rope_parameters", "rope_factor"}

_MAY_BE_NULL = {
    "compress_ratios",
    "num_hash_layers",
    "qk_rope_head_dim",
    "rope_scaling",
    "bos_token_id",
    "eos_token_id",
    "expert_dtype",
    "linear_dtype",
    "scale_dtype",
}
"""Fields of which null means "not said here". For others it would mean "without", which is another network."""

OLD_NAMES = {
    "dim": "hidden_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_hash_layers": "num_hash_layers",
    "n_heads": "num_attention_heads",
    "n_activated_experts": "num_experts_per_tok",
    "route_scale": "routed_scaling_factor",
    "rope_head_dim": "qk_rope_head_dim",
    "window_size": "sliding_window",
    "norm_eps": "rms_norm_eps",
    "score_func": "scoring_func",
    "n_mtp_layers": "num_nextn_predict_layers",
}
"""Field names of the official ``inference/config.json`` -> Hugging Face names."""

_SCALES = {"fp8": "ue8m0", "fp32": "float32"}
"""`scale_dtype` as the official inference code spells it."""


def read_fields(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of `ModelConfig` that a ``config.json`` means, and everything that is wrong with it.

    When there are problems the fields may still make a config, which is as near as can be to what the file describes.
    """
    problems: list[str] = []
    given = _renamed(data, problems)
    problems += _variants(given)
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    values = {name: given[name] for name in names if given.get(name) is not None}
    values.pop("rope_scaling", None)
    values |= rotary_fields(given, problems)
    values |= {"compress_ratios": _ratios(given, problems)} | _storage(given)
    values.setdefault("num_nextn_predict_layers", 1)
    values |= _hash_layers(given, problems)
    values |= _end_of_text(given, problems)
    if given.get("compress_ratios") is None and given.get("layer_types") is not None:
        # transformers ignores the field: its shared expert is as wide as a routed one.
        values["n_shared_experts"] = 1
    _add_mtp(values)
    required = [field.name for field in dataclasses.fields(ModelConfig) if field.default is dataclasses.MISSING]
    missing = [name for name in required if values.get(name) is None and not _told(name, problems)]
    if missing:
        problems.append(f"config lacks required field(s): {', '.join(missing)}")
    if not any(values.get(name) is None for name in required):
        try:
            ModelConfig(**values)
        except ConfigError as error:
            problems += error.problems
    return values, problems


def _told(name: str, problems: list[str]) -> bool:
    return any(problem.startswith(f"config field {name!r}") for problem in problems)


def _renamed(data: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """`data` under Hugging Face names."""
    given: dict[str, Any] = {}
    for key, value in data.items():
        name = OLD_NAMES.get(key, key)
        if name in given and given[name] != value:
            problems.append(f"config field {name!r} is {given[name]!r}, and {value!r} under its other name; give one")
        given[name] = value
    for spelled, meant in _SCALES.items():
        if given.get("scale_dtype") == spelled:
            given["scale_dtype"] = meant
    return given


# ---------------------------------------------------------------------- variants that are refused


def _variants(given: Mapping[str, Any]) -> Iterator[str]:
    """Fields that mean another network."""
    for name, accepted in ONLY.items():
        yield from _refused(name, given.get(name), accepted)
    for name, fields in ONLY_INSIDE.items():
        inside = given.get(name)
        if inside is None:
            continue
        if not isinstance(inside, Mapping):
            yield f"config field {name!r} is {inside!r}; it must be an object"
            continue
        for key, accepted in fields.items():
            yield from _refused(f"{name}.{key}", inside.get(key), accepted)
    for name, other in EQUAL.items():
        if given.get(name) is not None and given[name] != given.get(other):
            yield f"config field {name!r} is {given[name]!r}; it must be {given.get(other)!r}, as {other!r} is"
    for name, value in given.items():
        family = isinstance(name, str) and name.startswith(FAMILIES) and name not in _KNOWN
        if family and value is not None:
            yield f"config field {name!r} is {value!r}; it must be absent: Foveal does not know what it means"
    for field in dataclasses.fields(ModelConfig):
        null = field.name in given and given[field.name] is None and field.name not in _MAY_BE_NULL
        if null and field.default is not dataclasses.MISSING:
            yield f"config field {field.name!r} is None; it must have a value, or be absent for {field.default!r}"


def _refused(name: str, value: Any, accepted: tuple[Any, ...]) -> Iterator[str]:
    if value is None or any(_same(value, one) for one in accepted):
        return
    allowed = " or ".join(map(repr, accepted)) if accepted else "absent"
    yield f"config field {name!r} is {value!r}; it must be {allowed}, all that Foveal computes"


def _same(value: Any, other: Any) -> bool:
    """Equal, with true and 1 told apart."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


# ---------------------------------------------------------------------- the fields with several spellings


def _storage(given: Mapping[str, Any]) -> dict[str, Any]:
    """`linear_dtype` and `expert_dtype`; transformers keeps the latter in `quantization_config`. In a quantised model a
    missing `expert_dtype` means "fp4", as in the first instruct releases."""
    found = given.get("quantization_config")
    quantization = found if isinstance(found, Mapping) else {}
    quantised = bool(quantization) or given.get("dtype") == "fp8"
    linear, experts = given.get("linear_dtype"), given.get("expert_dtype")
    experts = quantization.get("expert_dtype") if experts is None else experts
    if linear is None:
        linear = "fp8" if quantised else "bf16"
    if experts is None:
        experts = "fp4" if quantised else "bf16"
    return {"linear_dtype": linear, "expert_dtype": experts}


def _hash_layers(given: Mapping[str, Any], problems: list[str]) -> dict[str, int]:
    """Number of hash-routed layers: from transformers' `mlp_layer_types`, else as given, else the official 3."""
    layers, count = given.get("num_hidden_layers"), given.get("num_hash_layers")
    types = given.get("mlp_layer_types")
    if types is None:
        return {} if count is not None else {"num_hash_layers": min(3, layers) if is_whole(layers) else 3}
    found = types.count("hash_moe") if isinstance(types, list | tuple) else 0
    if not isinstance(types, list | tuple) or list(types) != ["hash_moe"] * found + ["moe"] * (len(types) - found):
        problems.append(f"config field 'mlp_layer_types' is {types!r}; it must hold 'hash_moe' first, then 'moe'")
    elif is_whole(layers) and len(types) != layers:
        problems.append(f"config field 'mlp_layer_types' has {len(types)} entries; it must have {layers}, one a layer")
    elif count is not None and count != found:
        problems.append(f"config field 'num_hash_layers' is {count!r}; it must be {found}, as 'mlp_layer_types' has it")
    return {"num_hash_layers": found}


_RATIO_OF_NAME = {
    "sliding_attention": 0,
    "compressed_sparse_attention": CSA_RATIO,
    "heavily_compressed_attention": HCA_RATIO,
}


def _ratios(given: Mapping[str, Any], problems: list[str]) -> tuple[Any, ...] | None:
    """`compress_ratios`, or what transformers' `layer_types` mean."""
    ratios, named = given.get("compress_ratios"), _named_ratios(given.get("layer_types"), problems)
    if ratios is None:
        return named
    if not isinstance(ratios, list | tuple):
        problems.append(f"config field 'compress_ratios' is {ratios!r}; it must be a list, one ratio for each layer")
        return None
    if named is not None and tuple(ratios[: len(named)]) != named:
        problems.append(f"config field 'layer_types' means the ratios {list(named)}, but 'compress_ratios' differs")
    return tuple(ratios)


def _named_ratios(names: Any, problems: list[str]) -> tuple[int, ...] | None:
    if names is None:
        return None
    kinds = names if isinstance(names, list | tuple) else [names]
    unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in _RATIO_OF_NAME]
    if unknown or kinds is not names:
        problems.append(f"config field 'layer_types' holds {unknown[:3]}; it must hold {sorted(_RATIO_OF_NAME)}")
        return None
    return tuple(_RATIO_OF_NAME[kind] for kind in kinds)


def _end_of_text(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """transformers allows several `eos_token_id`s; the first is the model's own."""
    ids, size = given.get("eos_token_id"), given.get("vocab_size")
    if not isinstance(ids, list):
        return {}
    if ids and all(is_whole(one) and one >= 0 and (not is_whole(size) or one < size) for one in ids):
        return {"eos_token_id": ids[0]}
    problems.append(
        f"config field 'eos_token_id' is {ids!r}; it must be a token id below vocab_size, or a list of one or more"
    )
    return {"eos_token_id": 1}


def _add_mtp(values: dict[str, Any]) -> None:
    """transformers lists only the main layers in `layer_types`; official ratios list the MTP block too. Add its 0."""
    ratios, blocks = values.get("compress_ratios"), values["num_nextn_predict_layers"]
    few = is_whole(blocks) and 0 <= blocks <= MOST_BLOCKS
    if ratios is not None and few and len(ratios) == values.get("num_hidden_layers"):
        values["compress_ratios"] = ratios + (0,) * blocks
