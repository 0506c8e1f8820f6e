"""A small model on disk, with random weights and the nano's tokenizer, and the command line on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

import foveal
from foveal.checkpoint import random_weights, write_checkpoint
from foveal.cli.main import app
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


def write_model(folder: Path, seed: int, config: ModelConfig = SMALL, *, ends: bool = True) -> Path:
    """Write it to `folder`, and return that. `ends` off: the likeliest token never ends a text."""
    weights = random_weights(config, seed)
    write_checkpoint(folder, config, weights if ends else _endless(config, weights))
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _endless(config: ModelConfig, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, weight in weights:
        if name == "head.weight":
            weight = weight.copy()
            weight[config.eos_token_id] = 0
        yield name, weight


class Foveal:
    """The command line with one store and one model."""

    def __init__(self, store: Path, model: Path) -> None:
        self.store, self.model = store, model

    def __call__(self, *arguments: str, input: str | None = None) -> Result:
        options = ["--store", str(self.store)]
        if arguments[0] in ("read", "recall", "sync") and "--model" not in arguments:
            options += ["--model", str(self.model)]
        return CliRunner().invoke(app, [*arguments, *options], input=input)

    def json(self, *arguments: str, input: str | None = None) -> Any:
        result = self(*arguments, "--json", input=input)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)
