"""The architecture as numbers.

What is special here: one frozen dataclass holds every hyper-parameter of a DeepSeek-V4 model, under the names of the
official Hugging Face ``config.json``. It is validated when it is made, so that the rest of Foveal never checks again,
and every derived count (which layer is of which kind, how many entries `t` tokens leave behind) is asked of it and
computed nowhere else.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

PAGE_TOKENS = 256
"""Tokens a cache page covers: 64 CSA entries, 2 HCA entries (docs/design.md)."""

CSA_RATIO = 4
HCA_RATIO = 128


class ConfigError(ValueError):
    """A hyper-parameter is missing, of the wrong type or out of range; the message names the field and the range."""


class LayerKind(enum.StrEnum):
    """What a layer's attention sees beside its raw window (report section 2.3)."""

    SLIDING = "sliding"
    """Only the raw window (compress ratio 0)."""
    CSA = "csa"
    """Entries of 4 tokens, the best `index_topk` of them chosen by the indexer."""
    HCA = "hca"
    """Entries of 128 tokens, all of them."""


_KIND_OF_RATIO = {0: LayerKind.SLIDING, CSA_RATIO: LayerKind.CSA, HCA_RATIO: LayerKind.HCA}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_ratio(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in _KIND_OF_RATIO


ExpertDtype = Literal["fp4", "fp8", "bf16"]
LinearDtype = Literal["fp8", "bf16"]
ScaleDtype = Literal["ue8m0", "float32"]


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN frequency interpolation, used by the compressed layers only."""

    factor: float = 16.0
    original_max_position_embeddings: int = 65536
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Hyper-parameters of a DeepSeek-V4 model. Names are those of the official ``config.json``.

    `compress_ratios` has one entry for each layer, then one for each MTP block: 0 (window only), 4 (CSA) or 128 (HCA).
    `linear_dtype` and `expert_dtype` say how matrices are stored on disk; `scale_dtype` how their block scales are.

    Raises `ConfigError` when a value is out of range.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    compress_ratios: tuple[int, ...]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_hash_layers: int
    routed_scaling_factor: float
    n_shared_experts: int = 1
    sliding_window: int = 128
    swiglu_limit: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_scaling: YarnScaling | None = YarnScaling()
    max_position_embeddings: int = 1048576
    num_nextn_predict_layers: int = 1
    initializer_range: float = 0.02
    bos_token_id: int = 0
    eos_token_id: int = 1
    expert_dtype: ExpertDtype = "fp4"
    linear_dtype: LinearDtype = "fp8"
    scale_dtype: ScaleDtype = "ue8m0"

    # ------------------------------------------------------------------ derived

    def kind(self, layer: int) -> LayerKind:
        """Kind of `layer`; indices from `num_hidden_layers` on are MTP blocks."""
        return _KIND_OF_RATIO[self.compress_ratios[layer]]

    def layers_of(self, kind: LayerKind) -> tuple[int, ...]:
        """Indices of the main layers (no MTP blocks) of one kind, ascending."""
        return tuple(i for i in range(self.num_hidden_layers) if self.kind(i) is kind)

    def entries_after(self, tokens: int, layer: int) -> int:
        """Compressed entries `layer` holds after `tokens` tokens: ``tokens // ratio``."""
        ratio = self.compress_ratios[layer]
        return tokens // ratio if ratio else 0

    @property
    def nope_head_dim(self) -> int:
        """Channels of a head that do not rotate."""
        return self.head_dim - self.qk_rope_head_dim

    # ------------------------------------------------------------------ validation

    def __post_init__(self) -> None:
        positive = (
            "vocab_size hidden_size num_hidden_layers num_attention_heads head_dim q_lora_rank o_groups o_lora_rank "
            "index_n_heads index_head_dim index_topk n_routed_experts num_experts_per_tok moe_intermediate_size "
            "n_shared_experts sliding_window hc_mult hc_sinkhorn_iters max_position_embeddings"
        )
        for name in positive.split():
            self._check(name, self._is_int(name) and getattr(self, name) >= 1, "an integer >= 1")
        for name in ("num_nextn_predict_layers", "num_hash_layers", "bos_token_id", "eos_token_id"):
            self._check(name, self._is_int(name) and getattr(self, name) >= 0, "an integer >= 0")
        numbers = (
            "rope_theta compress_rope_theta routed_scaling_factor swiglu_limit hc_eps rms_norm_eps initializer_range"
        )
        for name in numbers.split():
            self._check(name, _is_positive(getattr(self, name)), "a number > 0")
        rope = self.qk_rope_head_dim
        smallest = min(self.head_dim, self.index_head_dim)
        fits = self._is_int("qk_rope_head_dim") and rope >= 2 and rope % 2 == 0 and rope <= smallest
        self._check("qk_rope_head_dim", fits, f"an even integer from 2 to {smallest} (the narrowest head)")
        self._check(
            "o_groups",
            self.num_attention_heads % self.o_groups == 0,
            f"a divisor of num_attention_heads ({self.num_attention_heads})",
        )
        power_of_two = self.index_head_dim & (self.index_head_dim - 1) == 0
        self._check("index_head_dim", power_of_two, "a power of two (the Hadamard rotation needs it)")
        self._check(
            "num_experts_per_tok",
            self.num_experts_per_tok <= self.n_routed_experts,
            f"an integer from 1 to n_routed_experts ({self.n_routed_experts})",
        )
        self._check(
            "num_hash_layers",
            self.num_hash_layers <= self.num_hidden_layers,
            f"an integer from 0 to num_hidden_layers ({self.num_hidden_layers})",
        )
        ratios = self.compress_ratios
        expected = self.num_hidden_layers + self.num_nextn_predict_layers
        right = isinstance(ratios, tuple) and len(ratios) == expected and all(map(_is_ratio, ratios))
        self._check(
            "compress_ratios",
            right,
            f"a tuple of {expected} numbers (num_hidden_layers + num_nextn_predict_layers), each 0, {CSA_RATIO} or "
            f"{HCA_RATIO}",
        )
        mtp = ratios[self.num_hidden_layers :]
        self._check("compress_ratios", not any(mtp), "0 for every MTP block")
        for name, allowed in (
            ("expert_dtype", ("fp4", "fp8", "bf16")),
            ("linear_dtype", ("fp8", "bf16")),
            ("scale_dtype", ("ue8m0", "float32")),
        ):
            self._check(name, getattr(self, name) in allowed, " or ".join(map(repr, allowed)))
        if self.expert_dtype == "fp4":
            for name in ("hidden_size", "moe_intermediate_size"):
                self._check(name, getattr(self, name) % 32 == 0, "a multiple of 32 when expert_dtype is 'fp4'")
        self._check_yarn()

    def _check_yarn(self) -> None:
        yarn = self.rope_scaling
        if yarn is None:
            return
        self._check("rope_scaling", isinstance(yarn, YarnScaling), "a YarnScaling, or None for none")
        numbers = all(map(_is_positive, dataclasses.astuple(yarn)))
        yarn_ok = numbers and yarn.factor >= 1 and yarn.original_max_position_embeddings >= 1
        allowed = "a factor >= 1, original_max_position_embeddings >= 1, beta_fast > 0 and beta_slow > 0"
        self._check("rope_scaling", yarn_ok, allowed)
        self._check("compress_rope_theta", self.compress_rope_theta != 1, "a number other than 1 with rope_scaling")

    def _is_int(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, int) and not isinstance(value, bool)

    def _check(self, name: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"config field {name!r} is {getattr(self, name)!r}; it must be {allowed}")

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    # ------------------------------------------------------------------ config.json

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From the contents of a ``config.json``: the Hugging Face names, or those of the official inference code.

        Unknown keys are ignored (official files carry many that do not concern the network). In a quantised model a
        missing ``expert_dtype`` means "fp4", as in the first instruct releases.

        Raises `ConfigError` naming every missing field, or a variant of the network that Foveal does not compute.
        """
        given = {_OLD_NAMES.get(key, key): value for key, value in data.items()}
        _refuse_variants(given)
        values = {f.name: given[f.name] for f in dataclasses.fields(cls) if given.get(f.name) is not None}
        values["rope_scaling"] = _read_yarn(given)
        values["compress_ratios"] = _read_ratios(given)
        values.setdefault("num_nextn_predict_layers", 1)
        values.setdefault("num_hash_layers", _read_hash_layers(given))
        values.setdefault("qk_rope_head_dim", _read_rotary_channels(given))
        for name, which in (("rope_theta", "main"), ("compress_rope_theta", "compress")):
            values |= _given_only(name, _nested_rope(given, which).get("rope_theta"))
        values |= _read_storage(given)
        if isinstance(given.get("eos_token_id"), list):  # transformers allows several; the first is the model's own
            values["eos_token_id"] = given["eos_token_id"][0]
        if data.get("compress_ratios") is None and data.get("layer_types") is not None:
            # transformers ignores the field: its shared expert is as wide as a routed one.
            values["n_shared_experts"] = 1
        _trim_mtp(values)
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [name for name in required if values.get(name) is None]
        if missing:
            raise ConfigError(f"config lacks required field(s): {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """From a ``config.json`` file. Raises `ConfigError` when it is not readable JSON."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"cannot read config {path}: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"cannot read config {path}: it must be a JSON object")
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """The contents of an official ``config.json``; `from_dict` reads it back to an equal config."""
        data = dataclasses.asdict(self)
        data["compress_ratios"] = list(self.compress_ratios)
        if self.rope_scaling is not None:
            data["rope_scaling"] = {"type": "yarn", **dataclasses.asdict(self.rope_scaling)}
        data |= _FIXED
        if self.linear_dtype == "fp8":
            data["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "scale_fmt": "ue8m0",
                "weight_block_size": [128, 128],
            }
        return data


_FIXED: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

_OLD_NAMES = {
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


def _read_yarn(data: Mapping[str, Any]) -> YarnScaling | None:
    """YaRN settings from `rope_scaling`, from transformers' `rope_parameters`, or from the inference config's names."""
    if "rope_factor" in data or "original_seq_len" in data:
        return YarnScaling(
            factor=data.get("rope_factor", 16.0),
            original_max_position_embeddings=data.get("original_seq_len", 65536),
            beta_fast=data.get("beta_fast", 32.0),
            beta_slow=data.get("beta_slow", 1.0),
        )
    raw = _nested_rope(data, "compress") or data.get("rope_scaling") or data.get("rope_parameters")
    kind = (raw or {}).get("type") or (raw or {}).get("rope_type")
    if not raw or kind in (None, "default"):
        return None
    if kind != "yarn":
        raise ConfigError(f"config field 'rope_scaling' has type {kind!r}; it must be 'yarn' or absent")
    for key, fixed in (("attention_factor", 1.0), ("truncate", True)):
        if raw.get(key, fixed) not in (fixed, None):
            raise ConfigError(f"config field 'rope_scaling' has {key} {raw[key]!r}; it must be {fixed} or absent")
    names = {f.name for f in dataclasses.fields(YarnScaling)}
    return YarnScaling(**{key: value for key, value in raw.items() if key in names})


def _nested_rope(data: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    """transformers' `rope_parameters`: "main" for the window-only layers, "compress" for the others. It wins over the
    top-level fields, which transformers leaves at their defaults beside it."""
    nested = (data.get("rope_parameters") or {}).get(which)
    return nested if isinstance(nested, Mapping) else {}


def _given_only(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _read_hash_layers(data: Mapping[str, Any]) -> int:
    """Number of hash-routed layers: from transformers' `mlp_layer_types`, else the official 3."""
    types = data.get("mlp_layer_types")
    if types is None:
        return min(3, data.get("num_hidden_layers") or 3)
    count = sum(kind == "hash_moe" for kind in types)
    if list(types) != ["hash_moe"] * count + ["moe"] * (len(types) - count):
        raise ConfigError(f"config field 'mlp_layer_types' is {types!r}; it must hold 'hash_moe' first, then 'moe'")
    return count


def _read_rotary_channels(data: Mapping[str, Any]) -> int | None:
    """transformers' spelling of `qk_rope_head_dim`: a fraction of `head_dim`."""
    fraction = data.get("partial_rotary_factor") or _nested_rope(data, "compress").get("partial_rotary_factor")
    return None if fraction is None or data.get("head_dim") is None else round(data["head_dim"] * fraction)


def _read_storage(data: Mapping[str, Any]) -> dict[str, Any]:
    """`linear_dtype` and `expert_dtype`; transformers keeps the latter in `quantization_config`."""
    quantization = data.get("quantization_config") or {}
    quantised = bool(quantization) or data.get("dtype") == "fp8"
    return {
        "linear_dtype": data.get("linear_dtype") or ("fp8" if quantised else "bf16"),
        "expert_dtype": data.get("expert_dtype")
        or quantization.get("expert_dtype")
        or ("fp4" if quantised else "bf16"),
    }


_ONLY: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "scoring_func": "sqrtsoftplus",
    "hidden_act": "silu",
    "mlp_bias": False,
    "compress_rates": {"compressed_sparse_attention": CSA_RATIO, "heavily_compressed_attention": HCA_RATIO},
    "compress_rate_csa": CSA_RATIO,
    "compress_rate_hca": HCA_RATIO,
}
"""Fields that transformers or the official code would follow elsewhere, and the one value DeepSeek-V4 has."""


def _refuse_variants(data: Mapping[str, Any]) -> None:
    for name, only in _ONLY.items():
        value = data.get(name)
        if value is not None and value != only:
            raise ConfigError(f"config field {name!r} is {value!r}; it must be {only!r}, all that Foveal computes")


_RATIO_OF_NAME = {
    "sliding_attention": 0,
    "compressed_sparse_attention": CSA_RATIO,
    "heavily_compressed_attention": HCA_RATIO,
}


def _read_ratios(data: Mapping[str, Any]) -> tuple[int, ...] | None:
    """`compress_ratios`, or transformers' `layer_types` + `compress_rates`-style spelling."""
    if data.get("compress_ratios") is not None:
        ratios = data["compress_ratios"]
        if not isinstance(ratios, list | tuple):
            raise ConfigError(
                f"config field 'compress_ratios' is {ratios!r}; it must be a list, one ratio for each layer"
            )
        return tuple(ratios)
    names = data.get("layer_types")
    if names is None:
        return None
    unknown = sorted(set(names) - set(_RATIO_OF_NAME))
    if unknown:
        raise ConfigError(f"config field 'layer_types' holds {unknown}; it must hold {sorted(_RATIO_OF_NAME)}")
    return tuple(_RATIO_OF_NAME[name] for name in names)


def _trim_mtp(values: dict[str, Any]) -> None:
    """transformers lists only the main layers in `layer_types`; official ratios list the MTP block too. Add its 0."""
    ratios, layers = values.get("compress_ratios"), values.get("num_hidden_layers")
    if ratios is None or layers is None:
        return
    if len(ratios) == layers:
        values["compress_ratios"] = ratios + (0,) * values["num_nextn_predict_layers"]


# ---------------------------------------------------------------------- presets


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
