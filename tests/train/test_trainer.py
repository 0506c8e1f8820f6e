"""The loop: a stopped or killed run goes on exactly where it was, on any number of processes; the curve is whole."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.processes import run_two
from helpers.stores import TINY
from torch import nn

import foveal
from foveal.checkpoint.reader import open_checkpoint
from foveal.train import launch, snapshot
from foveal.train.curve import Curve
from foveal.train.loss import gate_biases, head_loss, move_biases, sequence_balance
from foveal.train.settings import RunConfig, SettingsError, StageConfig
from foveal.train.snapshot import Position, Snapshot, SnapshotError

pytestmark = pytest.mark.slow

NANO = Path(foveal.__file__).parent / "weights" / "nano"
NEWLINE = 201
STAGES = [
    {"length": 64, "sequences": 2, "share": 0.4},
    {"length": 160, "sequences": 2, "share": 0.2, "documents": [64, 160]},
    {"length": 160, "sequences": 2, "share": 0.2, "train": "indexer"},
    {"length": 160, "sequences": 2, "share": 0.2, "index_topk": 8, "quantize": True},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    tokens = rng.integers(300, 4000, 20_000).astype(np.uint16)
    tokens[::7] = next(iter(_newlines()))
    tokens.tofile(folder / "train.bin")
    np.save(folder / "train.idx.npy", np.arange(0, 20_000, 1000))
    return folder / "train"


def _newlines() -> list[int]:
    from foveal.train.data import TokenTable

    return [TokenTable.from_tokenizer(NANO / "tokenizer.json").newline]


def settings(out: Path, store: Path, **changes: object) -> dict[str, object]:
    values: dict[str, object] = dict(
        out=str(out), train=str(store), tokenizer=str(NANO / "tokenizer.json"), tokens=128 * 16, log_every=1,
        start="random", precision="fp32", device="cpu", model=TINY, stages=STAGES, data={"blank_share": 0.5},
    )  # fmt: skip
    return values | changes


def run_config(out: Path, store: Path, **changes: object) -> RunConfig:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(settings(out, store, **changes)))
    return RunConfig.from_yaml(path)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


_CLOCK = {"seconds", "tokens_per_second"}


def curve(out: Path) -> list[dict[str, str]]:
    """The rows without what a clock says."""
    return [{k: v for k, v in row.items() if k not in _CLOCK} for row in rows(out)]


def same_checkpoint(one: Path, other: Path) -> None:
    first, second = (snapshot.load(snapshot.all_in(out)[-1]) for out in (one, other))
    assert first.position.step == second.position.step
    for name, tensor in first.parameters.items():
        assert torch.equal(tensor, second.parameters[name]), name
    for name, tensor in first.optimizer.items():
        assert torch.equal(tensor, second.optimizer[name]), name


@pytest.mark.parametrize("lag", [0, 2])
def test_a_stopped_run_gives_the_same_curve(tmp_path: Path, store: Path, lag: int) -> None:
    routing = {"lag": lag}
    launch.build(run_config(tmp_path / "whole", store, log_every=2, routing=routing)).train()
    out = tmp_path / "parts"
    for stop in (3, 8, 1000):  # in the middle of a row of the curve, too
        trainer = launch.build(run_config(out, store, log_every=2, routing=routing))
        trainer.report = lambda p, t=trainer, s=stop: t.stop() if p.position.step == s else None
        trainer.train()
    assert trainer.progress() >= 1
    same_checkpoint(tmp_path / "whole", out)
    assert curve(tmp_path / "whole") == curve(out)
    assert {row["stage"] for row in curve(out)} == {"0", "1", "2", "3"}
    assert any(row["anticipated"] == "1" for row in curve(out)) == (lag > 0)


def runs(process: str) -> bool:
    """Whether it is there, and not only waiting for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("lag", [0, 2])
def test_a_killed_run_gives_the_same_curve(tmp_path: Path, store: Path, lag: int) -> None:
    """SIGKILL, whenever it comes: what follows the last checkpoint is done again, bit for bit."""
    routing = {"lag": lag}
    launch.build(run_config(tmp_path / "whole", store, routing=routing)).train()
    out, path = tmp_path / "killed", tmp_path / "killed.yaml"
    path.write_text(yaml.safe_dump(settings(out, store, save_steps=3, workers=1, routing=routing)))
    process = subprocess.Popen([sys.executable, "-m", "foveal.cli.main", "train", str(path)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until:
        if (out / "curve.csv").is_file() and len(rows(out)) >= 5:
            break
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    while any(map(runs, children)):
        assert time.monotonic() < until, "workers outlive a run that was killed"
        time.sleep(0.05)
    assert children
    assert not snapshot.all_in(out) or snapshot.load(snapshot.all_in(out)[-1]).position.step % 3 == 0
    trainer = launch.build(run_config(out, store, save_steps=3, routing=routing))
    trainer.train()
    same_checkpoint(tmp_path / "whole", out)
    assert curve(tmp_path / "whole") == curve(out)
    assert all((path.stat().st_mode & 0o077) == 0 for path in out.rglob("*"))
    assert list((out / "tensorboard").glob("events*"))


@pytest.mark.parametrize(("kind", "lag"), [("ddp", 0), ("fsdp", 0), ("fsdp", 2)])
def test_two_processes_give_the_losses_of_one(tmp_path: Path, store: Path, kind: str, lag: int) -> None:
    held = dict(heldout=str(store), heldout_every=1, heldout_sequences=1)
    kept = dict(routing={"lag": lag}, save_steps=4, keep=100, **held)
    launch.build(run_config(tmp_path / "one", store, micro=1, **kept)).train()
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path / "two", store, parallel=kind, **kept)))
    run_two(["-m", "foveal.cli.main", "train", str(path)])
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "index_kl", "balance", "mtp_loss", "grad_norm"):
            assert (a[name] == "") == (b[name] == "")
            if a[name]:
                assert float(b[name]) == pytest.approx(float(a[name]), rel=0.02, abs=1e-3), (a["step"], name)
        assert a["anticipated"] == b["anticipated"]
    # A checkpoint of two processes is one of one process.
    for saved in snapshot.all_in(tmp_path / "two"):
        shared, alone = snapshot.load(saved).routing, snapshot.load(tmp_path / "one" / saved.name).routing
        assert shared.keys() == alone.keys()
        for name in shared:
            assert shared[name].shape == alone[name].shape
            if name.endswith("tokens"):
                assert torch.equal(shared[name], alone[name]), (saved.name, name)
    assert launch.build(run_config(tmp_path / "two", store)).position.step == len(two)


def test_a_signal_saves_and_stops(tmp_path: Path, store: Path) -> None:
    trainer = launch.build(run_config(tmp_path / "run", store, tokens=1 << 20))
    trainer.report = lambda p: os.kill(os.getpid(), signal.SIGTERM) if p.position.step == 2 else None
    before = signal.getsignal(signal.SIGTERM)
    position = trainer.train()
    assert 2 <= position.step <= 3
    assert snapshot.all_in(tmp_path / "run")[-1].name == f"step-{position.step:08d}"
    assert signal.getsignal(signal.SIGTERM) is before


def test_minutes_end_a_run(tmp_path: Path, store: Path) -> None:
    run = run_config(tmp_path / "run", store, tokens=None, minutes=0.005)
    position = launch.build(run).train()
    assert position.step >= 1 and position.seconds >= 0.3


def test_stages_train_what_they_say(tmp_path: Path, store: Path) -> None:
    """Everything moves in the first stage; the indexer alone in its warm-up; the MTP block is trained and exported."""
    trainer = launch.build(run_config(tmp_path / "run", store))
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}

    def moved() -> set[str]:
        return {n for n, p in trainer.network.named_parameters() if not torch.equal(p, before[n])}

    from foveal.train.prefetch import Prefetch

    prefetch = Prefetch(trainer.feed, 0)
    warm_up = trainer.run.stages[2]
    trainer._begin(warm_up, 0.5)
    trainer._step(warm_up, 0.5, prefetch)
    assert moved() == {name for name in before if ".indexer." in name}
    trainer._begin(trainer.run.stages[3], 0.9)
    trainer._step(trainer.run.stages[3], 0.9, prefetch)
    # The last 128-token compressor has one window and few queries behind it, but all parameters get a gradient.
    assert {name for name in before} - moved() <= {
        n for n in before if "layers.2.attn.compressor" in n or "tid2eid" in n
    }
    trainer.save()
    launch.export(trainer.run, tmp_path / "model")
    assert "mtp.0.e_proj.weight" in open_checkpoint(tmp_path / "model").weights


def test_the_bias_moves_and_the_loss_falls(tmp_path: Path, store: Path) -> None:
    stages = [{"length": 64, "sequences": 2}]
    run = run_config(tmp_path / "run", store, tokens=128 * 40, stages=stages, loss={"bias_speed": 0.01})
    trainer = launch.build(run)
    trainer.train()
    losses = [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert losses[-1] < losses[0]
    assert all(bool(bias.any()) for bias in gate_biases(trainer.network))


def test_another_networks_checkpoint_is_refused(tmp_path: Path, store: Path) -> None:
    launch.build(run_config(tmp_path / "run", store)).save()
    with pytest.raises(SnapshotError, match="another shape"):
        launch.build(run_config(tmp_path / "run", store, model=TINY | {"index_topk": 7}))


def test_snapshots_are_whole_and_few(tmp_path: Path) -> None:
    for step in range(5):
        snapshot.save(tmp_path, Snapshot(Position(step), {"a": torch.full((2,), step)}, {}, {"x": 1}), keep=2)
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


def test_the_head_in_blocks_equals_the_head_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.train.loss.HEAD_ROWS", 7)
    torch.manual_seed(0)
    targets, weights = torch.randint(0, 40, (50,)), torch.rand(50)
    found, expected = ([torch.randn(50, 8), torch.randn(40, 8)] for _ in range(2))
    expected = [t.clone().requires_grad_(True) for t in found]
    found = [t.requires_grad_(True) for t in found]
    value, nll, correct = head_loss(found[0], found[1], targets, weights)
    (3 * value).backward()
    logits = expected[0] @ expected[1].T
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    (3 * (losses * weights).sum()).backward()
    torch.testing.assert_close(nll, losses.detach())
    assert torch.equal(correct, logits.argmax(-1) == targets)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


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
    with pytest.raises(ValueError, match="1 have"):
        move_biases([bias], [torch.ones(3)] * 2, 0.1)


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


def test_the_shipped_runs_are_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in launch.CONFIGS.glob("*.yaml"):
        if path.stem.startswith("distill-"):  # they have a form of their own
            continue
        run = RunConfig.from_yaml(path)
        assert run.model_config().vocab_size == 4096 and run.stages[-1].quantize
        assert Path(run.tokenizer).is_file(), "whatever the current folder, and without a corpus"


def test_a_curve_becomes_a_picture(tmp_path: Path) -> None:
    from foveal.train.plot import main, read_curve

    curve = tmp_path / "curve.csv"
    curve.write_text(
        "tokens,recall_accuracy,heldout_recall_accuracy,ordinary_loss\n1000000,0.9,,6.5\n2000000,0.95,0.96,6.0\n"
    )
    assert read_curve(curve)["heldout_recall_accuracy"] == [(2.0, 0.96)]
    assert main([str(curve), str(tmp_path / "curve.png")]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
