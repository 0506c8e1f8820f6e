"""The architecture as numbers: every hyper-parameter of a DeepSeek-V4 model, under the names of the official
Hugging Face ``config.json``.

It is validated when it is made, so that the rest of Foveal never checks again, and every derived count (which layer is
of which kind, how many entries `t` tokens leave behind) is asked of it and computed nowhere else.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard

from foveal.errors import FovealError

PAGE_TOKENS = 256
"""Tokens a cache page covers: 64 CSA entries, 2 HCA entries (docs/design.md)."""

CSA_RATIO = 4
HCA_RATIO = 128


class ConfigError(FovealError, ValueError):
    """Hyper-parameters are missing, of the wrong type or out of range, or mean a network that Foveal does not compute.

    The message names each field and what it may be; `problems` has them one by one.
    """

    code = "invalid_request"

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


_LEAST, _MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


class LayerKind(enum.StrEnum):
    """What a layer's attention sees beside its raw window (report section 2.3)."""

    SLIDING = "sliding"
    """Only the raw window (compress ratio 0)."""
    CSA = "csa"
    """Entries of 4 tokens, the best `index_topk` of them chosen by the indexer."""
    HCA = "hca"
    """Entries of 128 tokens, all of them."""


_KIND_OF_RATIO = {0: LayerKind.SLIDING, CSA_RATIO: LayerKind.CSA, HCA_RATIO: LayerKind.HCA}


def is_positive(value: object) -> TypeGuard[float]:
    """Whether it is a number above 0 that fp32, in which the network computes, holds as such; and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and _LEAST <= value <= _MOST


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is an integer, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


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
        # What fields are must be known before how they fit together can be asked.
        problems = [*self._wrong_values()] or [*self._wrong_together()]
        if problems:
            raise ConfigError(*problems)

    def _wrong_values(self) -> Iterator[str]:
        """Fields that are wrong by themselves."""
        for name in _POSITIVE:
            value, most = getattr(self, name), _AT_MOST.get(name, _LARGEST)
            yield from self._wrong(name, is_whole(value) and 1 <= value <= most, f"an integer >= 1 (and <= {most})")
        for name in _NOT_NEGATIVE:
            value, most = getattr(self, name), _AT_MOST.get(name, _LARGEST)
            yield from self._wrong(name, is_whole(value) and 0 <= value <= most, f"an integer >= 0 (and <= {most})")
        for name in _NUMBERS:
            yield from self._wrong(name, is_positive(getattr(self, name)), "a number > 0, of a size that fp32 holds")
        for name, allowed in _STORED_AS.items():
            yield from self._wrong(name, getattr(self, name) in allowed, " or ".join(map(repr, allowed)))

    def _wrong_together(self) -> Iterator[str]:
        """Fields that do not fit the others."""
        rope, smallest = self.qk_rope_head_dim, min(self.head_dim, self.index_head_dim)
        fits = is_whole(rope) and 2 <= rope <= smallest and rope % 2 == 0
        yield from self._wrong("qk_rope_head_dim", fits, f"an even integer from 2 to {smallest} (the narrowest head)")
        heads, experts = self.num_attention_heads, self.n_routed_experts
        yield from self._wrong("o_groups", heads % self.o_groups == 0, f"a divisor of num_attention_heads ({heads})")
        power_of_two = self.index_head_dim & (self.index_head_dim - 1) == 0
        yield from self._wrong("index_head_dim", power_of_two, "a power of two (the Hadamard rotation needs it)")
        fits = self.num_experts_per_tok <= experts
        yield from self._wrong("num_experts_per_tok", fits, f"an integer from 1 to n_routed_experts ({experts})")
        fits = self.num_hash_layers <= self.num_hidden_layers
        allowed = f"an integer from 0 to num_hidden_layers ({self.num_hidden_layers})"
        yield from self._wrong("num_hash_layers", fits, allowed)
        for name in ("bos_token_id", "eos_token_id"):
            fits = getattr(self, name) < self.vocab_size
            yield from self._wrong(name, fits, f"an integer >= 0 and below vocab_size ({self.vocab_size})")
        if self.expert_dtype == "fp4":
            for name in ("hidden_size", "moe_intermediate_size"):
                fits = getattr(self, name) % 32 == 0
                yield from self._wrong(name, fits, "a multiple of 32 when expert_dtype is 'fp4'")
        yield from self._wrong_ratios()
        yield from self._wrong_yarn()

    def _wrong_ratios(self) -> Iterator[str]:
        ratios = self.compress_ratios
        expected = self.num_hidden_layers + self.num_nextn_predict_layers
        right = isinstance(ratios, tuple) and len(ratios) == expected and all(map(_is_ratio, ratios))
        allowed = (
            f"a tuple of {expected} numbers (num_hidden_layers + num_nextn_predict_layers), each 0, {CSA_RATIO} or "
            f"{HCA_RATIO}"
        )
        yield from self._wrong("compress_ratios", right, allowed)
        if right:
            without = not any(ratios[self.num_hidden_layers :])
            yield from self._wrong("compress_ratios", without, "0 for every MTP block")

    def _wrong_yarn(self) -> Iterator[str]:
        yarn = self.rope_scaling
        if yarn is None:
            return
        if not isinstance(yarn, YarnScaling):
            yield from self._wrong("rope_scaling", False, "a YarnScaling, or None for none")
            return
        numbers = all(map(is_positive, dataclasses.astuple(yarn)))
        yarn_ok = numbers and yarn.factor >= 1 and yarn.original_max_position_embeddings >= 1
        allowed = "a factor >= 1, original_max_position_embeddings >= 1, beta_fast > 0 and beta_slow > 0"
        yield from self._wrong("rope_scaling", yarn_ok, allowed)
        allowed = "a number other than 1 with rope_scaling"
        yield from self._wrong("compress_rope_theta", self.compress_rope_theta != 1, allowed)

    def _wrong(self, name: str, ok: bool, allowed: str) -> Iterator[str]:
        if not ok:
            yield f"config field {name!r} is {getattr(self, name)!r}; it must be {allowed}"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)

    # ------------------------------------------------------------------ config.json

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From the contents of a ``config.json``: the Hugging Face names, transformers' own spelling, or the names of
        the official inference code (`foveal.config.official` says what is accepted).

        Raises `ConfigError` naming every field that is missing, wrong, or means a network that Foveal does not compute.
        """
        from foveal.config.official import read_fields

        values, problems = read_fields(data)
        if problems:
            raise ConfigError(*problems)
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """From a ``config.json`` file. Raises `ConfigError` when it is not readable JSON."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
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


_POSITIVE = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads head_dim q_lora_rank o_groups o_lora_rank "
    "index_n_heads index_head_dim index_topk n_routed_experts num_experts_per_tok moe_intermediate_size "
    "n_shared_experts sliding_window hc_mult hc_sinkhorn_iters max_position_embeddings"
).split()
_NOT_NEGATIVE = "num_nextn_predict_layers num_hash_layers bos_token_id eos_token_id".split()
_NUMBERS = (
    "rope_theta compress_rope_theta routed_scaling_factor swiglu_limit hc_eps rms_norm_eps initializer_range"
).split()
_STORED_AS: dict[str, tuple[str, ...]] = {
    "expert_dtype": ("fp4", "fp8", "bf16"),
    "linear_dtype": ("fp8", "bf16"),
    "scale_dtype": ("ue8m0", "float32"),
}

_LARGEST = 2**31 - 1
MOST_BLOCKS = 64
_AT_MOST = {"num_nextn_predict_layers": MOST_BLOCKS, "hc_mult": 64, "hc_sinkhorn_iters": 1000}
"""Counts that the layout or a kernel loops over: a file must not make them loop for ever."""

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
