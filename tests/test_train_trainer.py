"""The loop: a stopped run goes on exactly where it was, budgets and stages are followed, the curve is whole."""

import csv
import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveal.train import snapshot
from foveal.train.curve import Curve
from foveal.train.data import Composer, Recipe, TokenStore, TokenTable
from foveal.train.loss import TrainOutput, backward_head, gate_biases, move_biases, sequence_balance
from foveal.train.settings import LossConfig, RunConfig, SettingsError, StageConfig
from foveal.train.snapshot import Position, SnapshotError
from foveal.train.trainer import Trainer

VOCABULARY = 4096
NEWLINE = 10


class Toy(nn.Module):
    """A bigram model with the trainer's interface, two "experts" and a balancing bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.mix = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.layers = nn.ModuleDict({"1": nn.ModuleDict({"ffn": nn.ModuleDict({"gate": nn.Module()})})})
        self.layers["1"]["ffn"]["gate"].register_buffer("bias", torch.zeros(2))  # type: ignore[index]

    def train_forward(self, tokens: Tensor) -> TrainOutput:
        hidden = self.mix(self.embed(tokens.reshape(-1)))
        balance = (self.mix.weight**2).mean()
        return TrainOutput(hidden.unsqueeze(1), hidden.pow(2).mean(), balance, [torch.tensor([3.0, 1.0])])

    def logits(self, streams: Tensor) -> Tensor:
        result: Tensor = self.head(streams[:, 0])
        return result


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    tokens = rng.integers(11, VOCABULARY, 20_000).astype(np.uint16)
    tokens[::7] = NEWLINE
    tokens.tofile(folder / "train.bin")
    np.save(folder / "train.idx.npy", np.arange(0, 20_000, 1000))
    line_end = np.zeros(VOCABULARY, dtype=np.bool_)
    line_end[NEWLINE] = True
    table = TokenTable(line_end, np.arange(11, VOCABULARY), NEWLINE, 2)
    return Composer(TokenStore(folder / "train"), table, Recipe(), seed=1)


def run_config(out: Path, tokens: int | None = 64 * 20, minutes: float | None = None) -> RunConfig:
    return RunConfig(
        out=str(out),
        train="",
        tokenizer="",
        tokens=tokens,
        minutes=minutes,
        log_every=1,
        stages=(StageConfig(64, 1, 0.5), StageConfig(128, 2, 0.5, lr=0.5)),
    )


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


_CLOCK = {"seconds", "tokens_per_second"}


def test_a_stopped_run_gives_the_same_curve(tmp_path: Path, composer: Composer) -> None:
    whole, parts = Toy(), Toy()
    Trainer(run_config(tmp_path / "whole"), whole, whole, composer).train()

    class Stopping(Trainer):
        def _log(self, stage: StageConfig) -> None:
            super()._log(stage)
            if self.position.step in (3, 9, 11):
                self.stop()

    out = tmp_path / "parts"
    for _ in range(4):
        parts = Toy()  # a new process knows nothing but the checkpoint
        trainer = Stopping(run_config(out), parts, parts, composer)
        trainer.train()
    assert trainer.progress() >= 1
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    strip = [{k: v for k, v in row.items() if k not in _CLOCK} for row in rows(tmp_path / "whole")]
    assert strip == [{k: v for k, v in row.items() if k not in _CLOCK} for row in rows(out)]
    assert [row["length"] for row in strip] == ["64"] * 10 + ["128"] * 3


def test_a_killed_run_goes_back_to_its_checkpoint(tmp_path: Path, composer: Composer) -> None:
    """Steps after the last checkpoint are lost and done again; their rows do not stand twice."""
    model = Toy()
    trainer = Trainer(run_config(tmp_path), model, model, composer)
    stage = trainer.stage_at(0)
    for _ in range(5):
        trainer._step(stage, trainer.progress())
        trainer._advance(stage, 1.0)
        trainer._log(stage)
        if trainer.position.step == 3:
            trainer.save()
    again = Toy()
    second = Trainer(run_config(tmp_path), again, again, composer)
    assert second.position.step == 3 and len(rows(tmp_path)) == 3
    second.train()
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(1, 14))


def test_a_signal_saves_and_stops(tmp_path: Path, composer: Composer) -> None:
    model = Toy()

    class Signalled(Trainer):
        def _log(self, stage: StageConfig) -> None:
            super()._log(stage)
            if self.position.step == 4 and not self._stop:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    position = Signalled(run_config(tmp_path, tokens=1 << 20), model, model, composer).train()
    assert 4 <= position.step <= 5
    assert snapshot.all_in(tmp_path)[-1].name == f"step-{position.step:08d}"
    assert signal.getsignal(signal.SIGTERM) is before


def test_minutes_end_a_run(tmp_path: Path, composer: Composer) -> None:
    model = Toy()
    position = Trainer(run_config(tmp_path, tokens=None, minutes=0.01), model, model, composer).train()
    assert position.step >= 1 and position.seconds >= 0.6


def test_the_loss_falls_and_the_bias_moves(tmp_path: Path, composer: Composer) -> None:
    model = Toy()
    config = dataclasses.replace(run_config(tmp_path, tokens=64 * 150), loss=LossConfig(bias_speed=0.01))
    Trainer(config, model, model, composer).train()
    losses = [float(row["loss"]) for row in rows(tmp_path)]
    assert losses[-1] < losses[0]
    bias = gate_biases(model)[0]
    assert bias[0] < 0 < bias[1]


def test_another_networks_checkpoint_is_refused(tmp_path: Path, composer: Composer) -> None:
    model = Toy()
    trainer = Trainer(run_config(tmp_path), model, model, composer)
    trainer.save()
    other = dataclasses.replace(run_config(tmp_path), model={"preset": "nano", "index_topk": 7})
    with pytest.raises(SnapshotError, match="another shape"):
        Trainer(other, model, model, composer)


def test_snapshots_are_whole_and_few(tmp_path: Path) -> None:
    for step in range(5):
        snapshot.save(tmp_path, Position(step), {"a": torch.full((2,), step)}, {}, {"x": 1}, keep=2)
    assert [path.name for path in snapshot.all_in(tmp_path)] == ["step-00000003", "step-00000004"]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    saved = snapshot.load(tmp_path / "step-00000004")
    assert saved.position.step == 4 and saved.config == {"x": 1} and saved.parameters["a"].tolist() == [4, 4]
    file = tmp_path / "step-00000004" / "parameters.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(SnapshotError, match="cannot read"):
        snapshot.load(tmp_path / "step-00000004")


def test_a_curve_refuses_unknown_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Curve(tmp_path / "c.csv", 0).add({"nonsense": 1.0})


def test_the_head_in_blocks_equals_the_head_at_once() -> None:
    model, other = Toy(), Toy()
    torch.manual_seed(0)
    targets, weights = torch.randint(0, VOCABULARY, (50,)), torch.rand(50)
    streams = torch.randn(50, 1, 8)
    loss, gradient = backward_head(model, streams, targets, weights, rows=7)
    leaf = streams.clone().requires_grad_(True)
    nll = nn.functional.cross_entropy(other.logits(leaf), targets, reduction="none")
    expected = (nll * weights).sum() / weights.sum()
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert leaf.grad is not None and other.head.weight.grad is not None and model.head.weight.grad is not None
    torch.testing.assert_close(gradient, leaf.grad)
    torch.testing.assert_close(model.head.weight.grad, other.head.weight.grad)


def test_balance_is_one_when_even_and_more_when_not() -> None:
    even = torch.ones(1, 8, 4)
    chosen = torch.arange(8).view(1, 8, 1) % 4
    assert float(sequence_balance(even, chosen)) == pytest.approx(1.0)
    skewed = torch.tensor([4.0, 1.0, 1.0, 1.0]).expand(1, 8, 4)
    assert float(sequence_balance(skewed, torch.zeros(1, 8, 1, dtype=torch.int64))) > 1.5


def test_biases_move_against_the_load() -> None:
    bias = torch.zeros(3)
    move_biases([bias], [torch.tensor([9.0, 3.0, 0.0])], 0.001)
    assert bias.tolist() == pytest.approx([-0.001, 0.001, 0.001])
    with pytest.raises(ValueError, match="2 have"):
        move_biases([bias, bias], [torch.ones(3)], 0.1)


def test_settings_are_read_strictly(tmp_path: Path) -> None:
    good = "out: o\ntrain: t\ntokenizer: k\ntokens: 5\nstages: [{length: 64}]\noptim: {muon_lr: 1e-3}\n"
    path = tmp_path / "run.yaml"
    path.write_text(good)
    run = RunConfig.from_yaml(path)
    assert run.optim.muon_lr == 1e-3 and run.stages == (StageConfig(64),)
    for extra, message in (
        ("sed: 3\n", "sed"),
        ("data: {span: [1]}\n", "span"),
        ("threads: many\n", "threads"),
        ("start: cold\n", "start"),
    ):
        path.write_text(good + extra)
        with pytest.raises(SettingsError, match=message):
            RunConfig.from_yaml(path)
    path.write_text(good.replace("tokens: 5\n", ""))
    with pytest.raises(SettingsError, match="budget"):
        RunConfig.from_yaml(path)


def test_the_shipped_run_is_readable() -> None:
    from foveal.train.__main__ import CONFIGS

    run = RunConfig.from_yaml(CONFIGS / "nano.yaml")
    assert run.model_config().vocab_size == 4096 and run.stages[-1].quantize


def test_a_curve_becomes_a_picture(tmp_path: Path) -> None:
    from foveal.train.plot import main, read_curve

    curve = tmp_path / "curve.csv"
    curve.write_text(
        "tokens,recall_accuracy,heldout_recall_accuracy,ordinary_loss\n1000000,0.9,,6.5\n2000000,0.95,0.96,6.0\n"
    )
    assert read_curve(curve)["heldout_recall_accuracy"] == [(2.0, 0.96)]
    assert main([str(curve), str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
