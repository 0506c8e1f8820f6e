"""The structured start, written by the command that exports it: it recalls before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stores import TOKENIZER, write_lines

import foveal
from foveal.checkpoint.errors import CheckpointError
from foveal.checkpoint.reader import open_checkpoint
from foveal.config import preset
from foveal.engine import ModelNotFound
from foveal.formats.tensors import dequantize, weight_tensors
from foveal.model.attention import Segment
from foveal.model.state import PlainState
from foveal.model.transformer import Transformer
from foveal.model.weights import load_transformer
from foveal.train import launch
from foveal.train.__main__ import main
from foveal.train.optim import OptimConfig
from foveal.train.settings import RunConfig, SettingsError, StageConfig
from foveal.train.structured import Circuit, structured_start

pytestmark = pytest.mark.slow

NANO = Path(foveal.__file__).parent / "weights" / "nano"


def run_from(folder: Path, source: str | None, **model: object) -> RunConfig:
    """Of the nano's shape, beginning with what is at `source`, on a token store that it makes."""
    return RunConfig(
        out=str(folder / "run"),
        train=str(write_lines(folder, 100)),
        tokenizer=str(TOKENIZER),
        stages=(StageConfig(64),),
        tokens=64,
        model={"preset": "nano", **model},
        start_from=source,
    )


def test_the_exported_start_recalls(tmp_path: Path) -> None:
    """Random tokens, with a rival: 29 tokens of what is asked for stand elsewhere too, and go on differently there."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(300, 4000, 4000).astype(np.uint16)
    tokens.tofile(tmp_path / "train.bin")
    np.save(tmp_path / "train.idx.npy", np.array([0, len(tokens)]))
    settings = {
        "out": tmp_path / "run",
        "train": tmp_path / "train",
        "tokenizer": NANO / "tokenizer.json",
        "tokens": 1,
        "start": "structured",
        "model": "{preset: nano}",
        "stages": "[{length: 64}]",
    }
    config = tmp_path / "run.yaml"
    config.write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    assert main([str(config), "--export-start", str(tmp_path / "model")]) == 0
    with pytest.raises(CheckpointError, match="already there"):  # it does not write over a model
        main([str(config), "--export-start", str(tmp_path / "model")])
    assert not (tmp_path / "run").exists(), "nothing was trained"

    context = torch.from_numpy(tokens[:600].astype(np.int64))
    context[400:429] = context[96:125]  # a rival that goes on differently
    context = torch.cat([context[:400], context[399:]])  # and stands at another place of its entries
    prompt = torch.cat([context, torch.full((36,), 2), context[92:132]])
    checkpoint = open_checkpoint(tmp_path / "model")
    model = load_transformer(checkpoint.config, checkpoint.weights, dtype=torch.float32)
    with torch.no_grad():
        streams = model(prompt, [Segment(PlainState(checkpoint.config), len(prompt))])
        found = model.logits(streams[-32:]).argmax(-1)
    assert int((found == context[101:133]).sum()) >= 30


def test_training_that_keeps_the_circuit_changes_all_else(tmp_path: Path) -> None:
    run = dataclasses.replace(
        run_from(tmp_path, None),
        stages=(StageConfig(128, index_kl=0.0), StageConfig(128, quantize=True)),
        tokens=512,
        keep_circuit=True,
        optim=OptimConfig(weight_decay=0.1),
    )
    trainer = launch.build(run)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.train()
    circuit, moved = Circuit.of(trainer.network.config), set()
    for name, tensor in trainer.network.state_dict().items():
        columns = circuit.columns.get(name, slice(0, 0))
        assert torch.equal(tensor[..., columns], before[name][..., columns]), name
        if not torch.equal(tensor, before[name]):
            moved.add(name)
    assert not [name for name in moved if circuit.holds(name)]
    trained = {name for name in before if not circuit.holds(name)}
    assert {"head.weight", "layers.2.ffn.shared_experts.w2.weight", "layers.3.attn.wq_b.weight"} <= trained
    assert moved == trained


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 8}, "4 or 5 attention heads"),
        ({"compress_ratios": (0, 0, 128, 128)}, "a CSA layer"),
        ({"compress_ratios": (0, 128, 4, 0)}, "two window-only layers"),
        ({"q_lora_rank": 128}, "q_lora_rank >= 334"),
        ({"o_lora_rank": 128}, "o_lora_rank >= 286"),
        ({"head_dim": 256}, "382 channels of a head"),
    ],
)
def test_a_shape_that_cannot_hold_it_is_refused(changes: dict[str, object], words: str) -> None:
    config = preset("nano").replace(**changes)
    model = Transformer(config)
    with pytest.raises(ValueError, match=words):
        structured_start(model, torch.ones(config.vocab_size))


def test_a_random_start_has_no_circuit_to_keep() -> None:
    with pytest.raises(SettingsError, match="needs 'start: structured'"):
        RunConfig("out", "train", "tokenizer", (StageConfig(64),), tokens=1, start="random", keep_circuit=True)


def test_a_run_may_begin_with_a_model_directory_or_with_another_runs_checkpoint(tmp_path: Path) -> None:
    trainer = launch.build(run_from(tmp_path, "nano"))
    shipped = open_checkpoint(NANO)
    expected = dequantize(weight_tensors(shipped.weights["layers.3.attn.wq_b.weight"]))
    assert torch.equal(trainer.network.layers[3].attn.wq_b.weight, expected)
    trainer.train()
    after = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    (other := tmp_path / "other").mkdir()
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    again = launch.build(run_from(other, str(checkpoint)))
    assert again.position.step == 0
    assert all(torch.equal(tensor, after[name]) for name, tensor in again.network.state_dict().items())


def test_a_model_of_another_shape_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"not of the shape of 'model' in \['index_topk'\]"):
        launch.build(run_from(tmp_path, "nano", index_topk=64))
    with pytest.raises(ModelNotFound, match="there is no model at"):
        launch.build(run_from(tmp_path, str(tmp_path / "nothing")))
