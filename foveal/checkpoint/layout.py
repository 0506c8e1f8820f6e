"""The official checkpoint layout, written out from the config alone.

One list, `weight_specs`, says which weights a model has; everything else (the tensors on disk, sizes, what a reader
must find, what a writer must be given) follows from it. A *weight* is logical, a matrix with its shape; a *tensor* is
what lies on disk: a packed weight is two tensors, ``X.weight`` (codes) and ``X.scale``.

Reproduces the published totals: DeepSeek-V4-Flash 69,187 tensors and 159,609,485,896 bytes, V4-Pro 145,116 tensors.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from foveal.config import CSA_RATIO, LayerKind, ModelConfig
from foveal.formats import BF16, E4M3, E8M0, F32, FP4_BLOCK, I8, I64, DType, fp8_scale_shape

Shape = tuple[int, ...]


class Storage(enum.Enum):
    """How a weight is stored, as far as the layout fixes it."""

    LINEAR = "linear"
    """A matrix whose format is the config's `linear_dtype`: FP8 or BF16."""
    EXPERT = "expert"
    """A matrix whose format is the config's `expert_dtype`: FP4, FP8 or BF16."""
    BF16 = "bf16"
    F32 = "f32"
    I64 = "i64"


@dataclass(frozen=True)
class WeightSpec:
    """One logical weight: its official name, its shape (matrices are [out, in]) and how it is stored."""

    name: str
    shape: Shape
    storage: Storage

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def scale_name(self) -> str:
        """Name of the scale tensor beside a packed matrix."""
        return self.name.removesuffix("weight") + "scale"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor on disk."""

    name: str
    shape: Shape
    dtype: DType

    @property
    def elements(self) -> int:
        """Stored elements (a byte of two FP4 codes is one)."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk, without the file's header."""
        return self.elements * self.dtype.itemsize


def weight_specs(config: ModelConfig, *, experts: int | None = None) -> Iterator[WeightSpec]:
    """Every weight of a model, in the order of the network: embedding, layers, head, MTP blocks.

    `experts`: only so many routed experts of each block (None: all). They are alike but for their number.
    """
    d, vocab = config.hidden_size, config.vocab_size
    yield WeightSpec("embed.weight", (vocab, d), Storage.BF16)
    for layer in range(config.num_hidden_layers):
        yield from _block(config, f"layers.{layer}", layer, experts)
    yield WeightSpec("norm.weight", (d,), Storage.BF16)
    yield WeightSpec("head.weight", (vocab, d), Storage.BF16)
    yield from _hyper_head(config, "")
    for index in range(config.num_nextn_predict_layers):
        yield from _mtp(config, f"mtp.{index}", config.num_hidden_layers + index, experts)


def tensor_specs(config: ModelConfig) -> Iterator[TensorSpec]:
    """Every tensor of a checkpoint on disk, with the storage dtypes the config names."""
    for spec in weight_specs(config):
        yield from stored_tensors(config, spec)


def stored_tensors(config: ModelConfig, spec: WeightSpec) -> Iterator[TensorSpec]:
    """The one or two tensors a weight is stored as under `config`'s dtypes."""
    scale = E8M0 if config.scale_dtype == "ue8m0" else F32
    match storage_format(config, spec):
        case "fp4":
            *lead, width = spec.shape
            yield TensorSpec(spec.name, (*lead, width // 2), I8)
            yield TensorSpec(spec.scale_name, (*lead, width // FP4_BLOCK), scale)
        case "fp8":
            yield TensorSpec(spec.name, spec.shape, E4M3)
            yield TensorSpec(spec.scale_name, fp8_scale_shape(spec.shape), scale)
        case "bf16":
            yield TensorSpec(spec.name, spec.shape, BF16)
        case "f32":
            yield TensorSpec(spec.name, spec.shape, F32)
        case "i64":
            yield TensorSpec(spec.name, spec.shape, I64)


def storage_format(config: ModelConfig, spec: WeightSpec) -> str:
    """The format a weight has under `config`: "fp4", "fp8", "bf16", "f32" or "i64"."""
    if spec.storage is Storage.LINEAR:
        return config.linear_dtype
    if spec.storage is Storage.EXPERT:
        return config.expert_dtype
    return spec.storage.value


# ---------------------------------------------------------------------- the parts


def _block(config: ModelConfig, prefix: str, layer: int, experts: int | None) -> Iterator[WeightSpec]:
    d, streams = config.hidden_size, config.hc_mult
    coefficients = (2 + streams) * streams
    for part in ("attn", "ffn"):
        yield WeightSpec(f"{prefix}.hc_{part}_fn", (coefficients, streams * d), Storage.F32)
        yield WeightSpec(f"{prefix}.hc_{part}_base", (coefficients,), Storage.F32)
        yield WeightSpec(f"{prefix}.hc_{part}_scale", (3,), Storage.F32)
    yield WeightSpec(f"{prefix}.attn_norm.weight", (d,), Storage.BF16)
    yield WeightSpec(f"{prefix}.ffn_norm.weight", (d,), Storage.BF16)
    yield from _attention(config, f"{prefix}.attn", layer)
    yield from _experts(config, f"{prefix}.ffn", experts, hashed=layer < config.num_hash_layers)


def _attention(config: ModelConfig, prefix: str, layer: int) -> Iterator[WeightSpec]:
    d, q, c = config.hidden_size, config.q_lora_rank, config.head_dim
    heads = config.num_attention_heads * c
    inner = config.o_groups * config.o_lora_rank
    yield WeightSpec(f"{prefix}.attn_sink", (config.num_attention_heads,), Storage.F32)
    yield WeightSpec(f"{prefix}.wq_a.weight", (q, d), Storage.LINEAR)
    yield WeightSpec(f"{prefix}.q_norm.weight", (q,), Storage.BF16)
    yield WeightSpec(f"{prefix}.wq_b.weight", (heads, q), Storage.LINEAR)
    yield WeightSpec(f"{prefix}.wkv.weight", (c, d), Storage.LINEAR)
    yield WeightSpec(f"{prefix}.kv_norm.weight", (c,), Storage.BF16)
    yield WeightSpec(f"{prefix}.wo_a.weight", (inner, heads // config.o_groups), Storage.LINEAR)
    yield WeightSpec(f"{prefix}.wo_b.weight", (d, inner), Storage.LINEAR)
    if config.kind(layer) is not LayerKind.SLIDING:
        yield from _compressor(config, f"{prefix}.compressor", config.compress_ratios[layer], c)
    if config.kind(layer) is LayerKind.CSA:
        width = config.index_n_heads * config.index_head_dim
        yield WeightSpec(f"{prefix}.indexer.wq_b.weight", (width, q), Storage.LINEAR)
        yield WeightSpec(f"{prefix}.indexer.weights_proj.weight", (config.index_n_heads, d), Storage.BF16)
        yield from _compressor(config, f"{prefix}.indexer.compressor", CSA_RATIO, config.index_head_dim)


def _compressor(config: ModelConfig, prefix: str, ratio: int, width: int) -> Iterator[WeightSpec]:
    rows = width * (2 if ratio == CSA_RATIO else 1)  # CSA windows overlap: a half of the channels for each role
    yield WeightSpec(f"{prefix}.ape", (ratio, rows), Storage.F32)
    yield WeightSpec(f"{prefix}.wkv.weight", (rows, config.hidden_size), Storage.BF16)
    yield WeightSpec(f"{prefix}.wgate.weight", (rows, config.hidden_size), Storage.BF16)
    yield WeightSpec(f"{prefix}.norm.weight", (width,), Storage.BF16)


def _experts(config: ModelConfig, prefix: str, experts: int | None, *, hashed: bool) -> Iterator[WeightSpec]:
    d, count = config.hidden_size, config.n_routed_experts
    yield WeightSpec(f"{prefix}.gate.weight", (count, d), Storage.BF16)
    if hashed:
        table = (config.vocab_size, config.num_experts_per_tok)
        yield WeightSpec(f"{prefix}.gate.tid2eid", table, Storage.I64)
    else:
        yield WeightSpec(f"{prefix}.gate.bias", (count,), Storage.F32)
    for expert in range(count if experts is None else experts):
        yield from _swiglu(f"{prefix}.experts.{expert}", d, config.moe_intermediate_size, Storage.EXPERT)
    shared = config.moe_intermediate_size * config.n_shared_experts
    yield from _swiglu(f"{prefix}.shared_experts", d, shared, Storage.LINEAR)


def _swiglu(prefix: str, d: int, m: int, storage: Storage) -> Iterator[WeightSpec]:
    yield WeightSpec(f"{prefix}.w1.weight", (m, d), storage)
    yield WeightSpec(f"{prefix}.w2.weight", (d, m), storage)
    yield WeightSpec(f"{prefix}.w3.weight", (m, d), storage)


def _hyper_head(config: ModelConfig, prefix: str) -> Iterator[WeightSpec]:
    streams = config.hc_mult
    yield WeightSpec(f"{prefix}hc_head_fn", (streams, streams * config.hidden_size), Storage.F32)
    yield WeightSpec(f"{prefix}hc_head_base", (streams,), Storage.F32)
    yield WeightSpec(f"{prefix}hc_head_scale", (1,), Storage.F32)


def _mtp(config: ModelConfig, prefix: str, layer: int, experts: int | None) -> Iterator[WeightSpec]:
    d = config.hidden_size
    yield from _block(config, prefix, layer, experts)
    yield WeightSpec(f"{prefix}.e_proj.weight", (d, d), Storage.LINEAR)
    yield WeightSpec(f"{prefix}.h_proj.weight", (d, d), Storage.LINEAR)
    for name in ("enorm", "hnorm", "norm"):
        yield WeightSpec(f"{prefix}.{name}.weight", (d,), Storage.BF16)
    yield from _hyper_head(config, f"{prefix}.")
