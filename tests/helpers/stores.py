"""Token stores for training tests, and a network small enough for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import foveal
from foveal.train.data import TokenTable

TOKENIZER = Path(foveal.__file__).parent / "weights" / "nano" / "tokenizer.json"

TINY = dict(
    preset="nano", hidden_size=32, num_hidden_layers=3, num_attention_heads=2, head_dim=32, qk_rope_head_dim=8,
    q_lora_rank=16, o_groups=2, o_lora_rank=16, compress_ratios=[0, 4, 128, 0], index_n_heads=2, index_head_dim=16,
    index_topk=8, n_routed_experts=4, moe_intermediate_size=32, sliding_window=16, num_nextn_predict_layers=1,
    hc_sinkhorn_iters=3,
)  # fmt: skip
"""What a run's `model` is set to: a layer of every kind, hash-routed experts, and an MTP block."""


def write_lines(folder: Path, count: int, *, top: int = 4000) -> Path:
    """A store of `count` lines of 9 random tokens and a newline, ids 300 to `top`; what `train` is set to."""
    lines = np.random.default_rng(0).integers(300, top, (count, 10))
    lines[:, -1] = TokenTable.from_tokenizer(TOKENIZER).newline
    lines.astype(np.uint16).tofile(folder / "train.bin")
    np.save(folder / "train.idx.npy", np.array([0, lines.size]))
    return folder / "train"
