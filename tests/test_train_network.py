"""Training, evaluation and export with the real network, small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.checkpoint.reader import open_checkpoint
from foveal.config import ModelConfig
from foveal.formats import Fp4Weight, Fp8Weight, dequantize
from foveal.model.attention import Segment
from foveal.model.state import PlainState
from foveal.model.transformer import Transformer
from foveal.model.weights import load_parameters, named_weights
from foveal.ops import Numerics
from foveal.train import snapshot
from foveal.train.data import DataError, TokenStore, TokenTable
from foveal.train.evaluate import answer, load_model, parse_length
from foveal.train.export import export_model
from foveal.train.loss import TrainTransformer, backward_head, gate_biases, move_biases
from foveal.train.optim import OptimConfig, Optimizer
from foveal.train.recall import Asking, ask, occurrences
from foveal.train.settings import StageConfig
from foveal.train.snapshot import Position
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


def test_a_training_pass_yields_what_the_losses_need() -> None:
    model = network()
    prepare_stage(model, StageConfig(length=140))
    tokens = torch.randint(0, 64, (2, 140), generator=torch.Generator().manual_seed(0))
    output = TrainTransformer(model, CONFIG).train_forward(tokens)
    assert output.streams.shape == (280, 4, 64)
    assert [load.sum().item() for load in output.loads] == [560, 560]
    assert float(output.index_kl.detach()) > 0 and float(output.balance.detach()) >= 0.9
    alone = model(tokens[1], [Segment(PlainState(CONFIG), 140)])
    torch.testing.assert_close(output.streams[140:], alone, rtol=1e-4, atol=1e-5)
    move_biases(gate_biases(model), output.loads, 0.001)


@pytest.mark.parametrize("quantize", [False, True])
def test_every_parameter_learns(quantize: bool) -> None:
    """Every parameter gets a gradient, and fitting one sequence lowers its loss, rounding or not."""
    model = network()
    prepare_stage(model, StageConfig(length=140, quantize=quantize))
    train = TrainTransformer(model, CONFIG)
    optimizer = Optimizer(model.named_parameters(), OptimConfig(muon_lr=0.01, adam_lr=0.01))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 64, (1, 141), generator=generator)
    losses = []
    for step in range(8):
        optimizer.zero_grad()
        output = train.train_forward(tokens[:, :-1])
        loss, gradient = backward_head(train, output.streams, tokens[0, 1:], torch.ones(140))
        torch.autograd.backward([output.streams, 0.1 * output.index_kl + output.balance], [gradient, None])
        if step == 0:
            assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        losses.append(loss.value)
    assert losses[-1] < losses[0] - 0.3


def save_run(folder: Path, model: Transformer) -> Path:
    return snapshot.save(folder, Position(1), model.state_dict(), {}, CONFIG.to_dict())


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
        found = dequantize(checkpoint.weights[name], torch.float32)
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
    for loaded in (load_model(tmp_path / "run", quantized=True), load_model(tmp_path / "model")):
        streams = loaded(tokens, [Segment(PlainState(CONFIG), 100)])
        results.append(loaded.logits(streams))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def held_out(folder: Path) -> tuple[TokenStore, TokenTable]:
    rng = np.random.default_rng(0)
    lines = [np.append(rng.integers(2, 64, int(rng.integers(4, 14))), 1) for _ in range(400)]
    tokens = np.concatenate(lines + lines[:100]).astype(np.uint16)
    tokens.tofile(folder / "h.bin")
    np.save(folder / "h.idx.npy", np.array([0, 500, 1000, len(tokens)]))
    line_end = np.zeros(64, dtype=np.bool_)
    line_end[1] = True
    return TokenStore(folder / "h"), TokenTable(line_end, np.arange(3, 64), 1, 2)


def test_questions_have_one_answer(tmp_path: Path) -> None:
    store, table = held_out(tmp_path)
    for number in range(20):
        q = ask(store, table, 1500, number)
        cue = q.context[q.cue_at : q.cue_at + q.cue_length]
        assert occurrences(q.context, cue).tolist() == [q.cue_at]
        assert q.cue_at == 0 or table.line_end[q.context[q.cue_at - 1]]
        assert table.line_end[cue[-1]] and len(cue) >= 8 and len(q.answer) == 32
        assert q.cue_at + q.cue_length <= len(q.context) - 300
        assert np.array_equal(q.context[q.cue_at + q.cue_length :][:32], q.answer)
        assert np.array_equal(q.prompt, np.concatenate([q.context, [1], cue]))
        assert np.array_equal(ask(store, table, 1500, number).prompt, q.prompt)
    with pytest.raises(DataError, match="larger store"):
        ask(store, table, 100_000, 0)
    with pytest.raises(DataError, match="too short"):
        ask(store, table, 200, 0)


def test_an_answer_equals_plain_greedy(tmp_path: Path) -> None:
    store, table = held_out(tmp_path)
    question = ask(store, table, 600, 0, asking=Asking(answer=6))
    model = network(3).eval().requires_grad_(False)
    found = answer(model, question, 0)
    tokens = torch.from_numpy(question.prompt)
    for token in found.got:
        streams = model(tokens, [Segment(PlainState(CONFIG), len(tokens))])
        assert int(model.logits(streams[-1:]).argmax()) == token
        tokens = torch.cat([tokens, torch.tensor([token])])
    forced = torch.cat([torch.from_numpy(question.prompt), torch.from_numpy(question.answer[:-1])])
    streams = model(forced, [Segment(PlainState(CONFIG), len(forced))])
    top = model.logits(streams[-6:]).argmax(-1).tolist()
    assert found.forced_accuracy == sum(a == b for a, b in zip(top, found.expected, strict=True)) / 6
    assert found.expected == question.answer.tolist()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(snapshot.SnapshotError, match="neither"):
        load_model(tmp_path)
    (tmp_path / "position.json").write_text(json.dumps({"step": 1}))
    with pytest.raises(snapshot.SnapshotError, match="cannot read"):
        load_model(tmp_path)


def test_lengths() -> None:
    assert [parse_length(text) for text in ("4k", "1M", "77")] == [4096, 1 << 20, 77]
