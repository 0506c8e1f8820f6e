"""A small model on disk, with random weights and the nano's tokenizer, for tests that open one."""

from __future__ import annotations

import shutil
from pathlib import Path

import foveal
from foveal.checkpoint import random_weights, write_checkpoint
from foveal.config import ModelConfig, preset

TOKENIZER = Path(foveal.__file__).parent / "weights" / "nano"


SMALL = preset("nano").replace(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    head_dim=32,
    qk_rope_head_dim=16,
    q_lora_rank=32,
    o_lora_rank=32,
    compress_ratios=(0, 4, 128),
    index_n_heads=2,
    index_head_dim=32,
    index_topk=16,
    n_routed_experts=4,
    moe_intermediate_size=32,
    num_nextn_predict_layers=0,
    expert_dtype="bf16",
    linear_dtype="bf16",
)


def write_model(folder: Path, seed: int, config: ModelConfig = SMALL) -> Path:
    """Write it to `folder`, and return that."""
    write_checkpoint(folder, config, random_weights(config, seed))
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder
