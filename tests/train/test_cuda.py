"""Training on a GPU: BF16 products under autocast give the losses of FP32, in every stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stores import TOKENIZER, write_lines

from foveal.train import launch
from foveal.train.parallel import joined
from foveal.train.settings import RunConfig, StageConfig

STAGES = (
    StageConfig(256, 4, index_kl=0.0),
    StageConfig(512, 2, documents=(128, 512)),
    StageConfig(512, 2, train="indexer"),
    StageConfig(512, 2, index_topk=32, quantize=True),
)
SHAPE = {
    "preset": "nano", "hidden_size": 128, "num_hidden_layers": 4, "head_dim": 64, "qk_rope_head_dim": 16,
    "q_lora_rank": 96, "o_lora_rank": 64, "compress_ratios": [0, 4, 128, 4, 0], "index_head_dim": 32,
    "moe_intermediate_size": 64, "num_nextn_predict_layers": 1,
}  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_follows_fp32(tmp_path: Path, compiled: bool) -> None:
    train, curves = write_lines(tmp_path, 2000, top=400), []
    for precision in ("fp32", "bf16"):
        run = RunConfig(
            out=str(tmp_path / precision),
            train=str(train),
            tokenizer=str(TOKENIZER),
            stages=STAGES,
            tokens=16384,
            model=SHAPE,
            start="random",
            device="cuda",
            precision=precision,
            compile=compiled and precision == "bf16",
            log_every=1,
        )
        losses: list[float] = []
        with joined(run.device, run.parallel) as group:
            trainer = launch.build(run, group, lambda p, to=losses: to.append(p.values.get("loss", 0.0)))
            trainer.train()
        curves.append(losses)
    assert len(curves[0]) == len(curves[1]) == 16
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)
