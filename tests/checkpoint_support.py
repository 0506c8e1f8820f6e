"""A small model with every layer kind, both routings, an MTP block and odd sizes; and ways to break its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from foveal.checkpoint import convert_weights, random_weights, write_checkpoint
from foveal.checkpoint.files import _DTYPES
from foveal.config import ModelConfig
from foveal.formats import BF16, DType, Weight, dequantize

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=160,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=48,
    qk_rope_head_dim=8,
    q_lora_rank=40,
    o_groups=2,
    o_lora_rank=24,
    compress_ratios=(0, 4, 128, 4, 0),
    index_n_heads=3,
    index_head_dim=16,
    index_topk=8,
    n_routed_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    num_hash_layers=1,
    routed_scaling_factor=1.5,
)
"""FP8 matrices, FP4 experts, UE8M0 scales. No size but the experts' is a multiple of 32 or 128."""

PLAIN = CONFIG.replace(linear_dtype="bf16", expert_dtype="bf16")
WITHOUT_MTP = CONFIG.replace(num_nextn_predict_layers=0, compress_ratios=CONFIG.compress_ratios[:-1])

FORMATS = [
    {"expert_dtype": expert, "linear_dtype": linear, "scale_dtype": scale}
    for expert, linear, scale in (
        ("fp4", "fp8", "ue8m0"),
        ("fp8", "fp8", "float32"),
        ("fp4", "fp8", "float32"),
        ("bf16", "bf16", "ue8m0"),
        ("fp4", "bf16", "ue8m0"),
    )
]


def weights_of(config: ModelConfig, seed: int = 0, plain_dtype: DType = BF16) -> dict[str, Weight]:
    """Random weights in the config's formats; of the same values for every format but for rounding."""
    source = config.replace(linear_dtype="bf16", expert_dtype="bf16")
    return dict(convert_weights(random_weights(source, seed), config, plain_dtype=plain_dtype))


def write_small(folder: Path, config: ModelConfig = CONFIG, *, shards: bool = False) -> dict[str, Weight]:
    """A checkpoint in `folder`; the weights it was written from."""
    weights = weights_of(config)
    write_checkpoint(folder, config, weights.items(), max_shard_bytes=100_000 if shards else 1 << 30)
    return weights


def same(a: Weight, b: Weight) -> bool:
    """Equal type, shape and bits."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and np.array_equal(dequantize(a), dequantize(b))


def load_file(file: Path) -> dict[str, np.ndarray]:
    """A file's tensors, to be written into."""
    found = safetensors.deserialize(file.read_bytes())
    return {
        name: np.frombuffer(bytearray(said["data"]), _DTYPES[said["dtype"]]).reshape(said["shape"])
        for name, said in found
    }


def edit(folder: Path, change) -> None:
    """Rewrite a single-file checkpoint's tensors: `change` gets and alters a dict of them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    """Set fields of ``config.json``; None removes one."""
    data = json.loads((folder / "config.json").read_text())
    data = {key: value for key, value in (data | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(data))
