"""Training, evaluation and export with the real network, small."""

import json
from pathlib import Path

import pytest
import torch
from helpers.formats import Fp4Weight, Fp8Weight, dequantize, weight_tensors

from foveal.checkpoint.reader import open_checkpoint
from foveal.config import ModelConfig, Numerics
from foveal.model.attention import Segment
from foveal.model.state import PlainState
from foveal.model.transformer import Transformer
from foveal.model.weights import load_parameters, load_transformer, named_weights
from foveal.ops import Packing
from foveal.train import snapshot
from foveal.train.batch import Batch
from foveal.train.export import export_model, model_of
from foveal.train.loss import TrainTransformer, Weighing, gate_biases, move_biases
from foveal.train.optim import OptimConfig, Optimizer
from foveal.train.settings import StageConfig
from foveal.train.snapshot import Position, Snapshot
from foveal.train.start import prepare_stage, random_start

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    head_dim=32,
    qk_rope_head_dim=8,
    q_lora_rank=32,
    o_groups=2,
    o_lora_rank=16,
    compress_ratios=(0, 4, 128),
    index_n_heads=2,
    index_head_dim=32,
    index_topk=8,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    num_hash_layers=1,
    routed_scaling_factor=1.5,
    sliding_window=16,
    num_nextn_predict_layers=0,
)


def network(seed: int = 0) -> Transformer:
    model = Transformer(CONFIG, numerics=Numerics.none())
    random_start(model, CONFIG, seed)
    return model


def batch_of(tokens: torch.Tensor) -> Batch:
    targets = tokens[:, 1:]
    packing = Packing.whole(len(tokens), targets.shape[1])
    weights = torch.ones_like(targets, dtype=torch.float32)
    return Batch(tokens[:, :-1], targets, weights, targets < 0, packing)


def test_a_training_pass_yields_what_the_losses_need() -> None:
    model = network()
    prepare_stage(model, StageConfig(length=140))
    tokens = torch.randint(0, 64, (2, 141), generator=torch.Generator().manual_seed(0))
    loss, found = TrainTransformer(model)(batch_of(tokens), Weighing(280, 280, 1, 0.1, 1e-4, 0.0))
    assert [load.sum().item() for load in found["loads"]] == [560, 560]
    assert float(found["index_kl"]) > 0 and float(found["balance"]) >= 0.9
    alone = model(tokens[1, :-1], [Segment(PlainState(CONFIG), 140)])
    nll = torch.nn.functional.cross_entropy(model.logits(alone), tokens[1, 1:], reduction="none")
    torch.testing.assert_close(found["nll"][140:], nll.detach(), rtol=1e-4, atol=1e-5)
    expected = found["nll"].mean() + 0.1 * found["index_kl"] + 1e-4 * found["balance"]
    torch.testing.assert_close(loss.detach(), expected)
    move_biases(gate_biases(model), found["loads"], 0.001)


@pytest.mark.parametrize("quantize", [False, True])
def test_every_parameter_learns(quantize: bool) -> None:
    """Every parameter gets a gradient, and fitting one sequence lowers its loss, rounding or not."""
    model = network()
    prepare_stage(model, StageConfig(length=140, quantize=quantize))
    train = TrainTransformer(model)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(muon_lr=0.01, adam_lr=0.01))
    batch = batch_of(torch.randint(0, 64, (1, 141), generator=torch.Generator().manual_seed(1)))
    losses = []
    for step in range(8):
        optimizer.zero_grad()
        loss, found = train(batch, Weighing(140, 140, 1, 0.1, 1.0, 0.0))
        loss.backward()
        if step == 0:
            assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(float(found["nll"].mean()))
    assert losses[-1] < losses[0] - 0.3


def save_run(folder: Path, model: Transformer) -> Path:
    return snapshot.save(folder, Snapshot(Position(1), model.state_dict(), {}, CONFIG.to_dict()))


def test_export_round_trip(tmp_path: Path) -> None:
    model = network()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    export_model(model, CONFIG, tmp_path / "model", tokenizer)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert checkpoint.config == CONFIG
    assert isinstance(checkpoint.weights["layers.1.ffn.experts.3.w2.weight"], Fp4Weight)
    assert isinstance(checkpoint.weights["layers.1.attn.wq_b.weight"], Fp8Weight)
    # What quantisation-aware training computes with is what the files hold.
    prepare_stage(model, StageConfig(length=64, quantize=True))
    for name, weight in named_weights(model):
        expected = dequantize(weight, torch.float32) if weight.is_floating_point() else weight
        found = dequantize(weight_tensors(checkpoint.weights[name]), torch.float32)
        torch.testing.assert_close(found, expected.to(torch.float32), rtol=1e-2, atol=1e-6)
    with pytest.raises(ValueError, match="already there"):
        export_model(model, CONFIG, tmp_path / "model")


def test_an_export_computes_like_the_checkpoint(tmp_path: Path) -> None:
    """A checkpoint evaluated as quantised gives what its export gives, but for what BF16 rounds off small tensors."""
    model = network()
    export_model(model, CONFIG, tmp_path / "first")
    load_parameters(model, open_checkpoint(tmp_path / "first").weights)  # now BF16 rounds off nothing
    save_run(tmp_path / "run", model)
    export_model(model, CONFIG, tmp_path / "model")
    tokens = torch.randint(0, 64, (100,), generator=torch.Generator().manual_seed(3))
    results = []
    trained = model_of(tmp_path / "run")
    prepare_stage(trained, StageConfig(length=CONFIG.index_topk, quantize=True))
    checkpoint = open_checkpoint(tmp_path / "model")
    for loaded in (trained, load_transformer(checkpoint.config, checkpoint.weights, dtype=torch.float32)):
        streams = loaded(tokens, [Segment(PlainState(CONFIG), 100)])
        results.append(loaded.logits(streams))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(snapshot.SnapshotError, match="neither"):
        model_of(tmp_path)
    (tmp_path / "position.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(snapshot.SnapshotError, match="cannot read"):
        model_of(tmp_path)
