"""Anticipatory routing: tokens go where the parameters of some steps before sent them, always or after a loss spike."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.stores import TINY, TOKENIZER, write_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from foveal.model.trace import Observer
from foveal.ops import Packing
from foveal.train import launch, snapshot
from foveal.train.anticipation import Anticipation, RecentLosses
from foveal.train.batch import Batch
from foveal.train.loss import Weighing
from foveal.train.optim import OptimConfig
from foveal.train.parallel import Group
from foveal.train.settings import LossConfig, RoutingConfig, RunConfig, SettingsError, StageConfig
from foveal.train.start import prepare_stage
from foveal.train.trainer import Trainer

pytestmark = pytest.mark.slow

ROUTED = {1, 2, 3}
"""Layers with a router that learns: the first is hash-routed, the last is the MTP block."""
DENSE = StageConfig(64, 2)
STAGES = (
    StageConfig(64, 2, share=0.35),
    StageConfig(160, 2, share=0.35, documents=(64, 160)),
    StageConfig(160, 2, share=0.3, train="indexer"),
    StageConfig(160, 2, share=0.5, index_topk=8, quantize=True),
)
TOKENS = 128 * 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("store"), 2000)


def run_config(out: Path, store: Path, lag: int, stages: tuple[StageConfig, ...] = STAGES, **changes: Any) -> RunConfig:
    values: dict[str, Any] = dict(
        out=str(out), train=str(store), tokenizer=str(TOKENIZER), stages=stages, model=TINY, start="random",
        tokens=TOKENS, log_every=1, precision="fp32", device="cpu", routing=RoutingConfig(lag),
    )  # fmt: skip
    return RunConfig(**values | changes)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_parameters_that_stand_still_lose_what_they_would(tmp_path: Path, store: Path) -> None:
    """Then it is the same which step's parameters choose: through all stages and across their borders, and no row is
    composed twice."""
    asked: list[int] = []
    for name, lag in (("plain", 0), ("ahead", 2)):
        run = run_config(
            tmp_path / name, store, lag, optim=OptimConfig(muon_lr=0, adam_lr=0), loss=LossConfig(bias_speed=0)
        )
        trainer = launch.build(run)
        trainer.feed.batch = counted(trainer.feed.batch, asked if lag else [])  # type: ignore[method-assign]
        trainer.train()
    plain, ahead = rows(tmp_path / "plain"), rows(tmp_path / "ahead")
    assert len(plain) == len(ahead) and asked == list(range(len(ahead)))
    for one, other in zip(plain, ahead, strict=True):
        for column in ("loss", "mtp_loss", "index_kl", "balance", "grad_norm"):
            assert one[column] == other[column], (one["step"], column)
    assert {row["anticipated"] for row in plain} == {""} and {row["rerouted"] for row in plain} == {""}
    expected = ["0" if i < 2 or row["stage"] == "2" else "1" for i, row in enumerate(ahead)]
    assert [row["anticipated"] for row in ahead] == expected
    assert {row["stage"] for row, on in zip(ahead, expected, strict=True) if on == "1"} == {"0", "1", "3"}
    assert {row["rerouted"] for row in ahead} == {"", "0"}


def counted(function: Callable[..., Batch], steps: list[int]) -> Callable[..., Batch]:
    def call(step: int, *rest: Any) -> Batch:
        steps.append(step)
        return function(step, *rest)

    return call


def test_experts_are_those_of_the_parameters_lag_steps_before(tmp_path: Path, store: Path) -> None:
    run = run_config(
        tmp_path / "run", store, 2, save_steps=1, keep=100, micro=1,
        optim=OptimConfig(muon_lr=0.05), loss=LossConfig(bias_speed=0.02),
    )  # fmt: skip
    trainer = launch.build(run)
    used: list[tuple[int, Batch, StageConfig, dict[int, Tensor]]] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        batch, _, experts = args
        if experts:
            progress = trainer.progress()
            used.append((trainer.position.step, batch, trainer.stage_at(progress), experts))

    trainer.model.register_forward_pre_hook(note)
    trainer.train()
    assert {stage.length for _, _, stage, _ in used} == {64, 160} and any(stage.quantize for _, _, stage, _ in used)
    by_hand = launch.build(run_config(tmp_path / "hand", store, 0)).network
    moved = 0
    for step, batch, stage, experts in used:
        if step < 3:  # the first checkpoint is that of step 1
            continue
        prepare_stage(by_hand, stage)
        assert experts.keys() == ROUTED
        for past, same in ((2, True), (0, False)):
            by_hand.load_state_dict(snapshot.load(tmp_path / "run" / f"step-{step - past:08d}").parameters)
            observer = Observer()
            with torch.no_grad():
                by_hand(batch.tokens.flatten(), batch.packing, observer)
            for load in observer.loads:
                if same:
                    assert torch.equal(load.chosen, experts[load.layer]), (step, load.layer)
                moved += not torch.equal(load.chosen, experts[load.layer])
    assert moved, "the parameters of the step itself would have chosen the same"
    assert any(float(row["rerouted"] or 0) > 0 for row in rows(tmp_path / "run"))


def test_routers_learn_through_the_weights(tmp_path: Path, store: Path) -> None:
    trainer = launch.build(run_config(tmp_path / "run", store, 0))
    prepare_stage(trainer.network, DENSE)
    batch = trainer.feed.batch(0, [0, 1], 64).to(torch.device("cpu"), trainer.ratios)
    generator = torch.Generator().manual_seed(0)
    told = {layer: torch.rand(128, 4, generator=generator).argsort(-1)[:, :2] for layer in ROUTED}
    weighing = Weighing(tokens=128, mtp_tokens=128, rows=1, index_kl=0, balance=0, mtp=0.3)
    loss, found = trainer.model(batch, weighing, told)
    loss.backward()
    for load, layer in zip(found["loads"], sorted(ROUTED), strict=True):
        assert torch.equal(load, torch.bincount(told[layer].flatten(), minlength=4).to(load.dtype))
    for block in [*trainer.network.layers[1:], *trainer.network.mtp]:
        assert float(block.ffn.gate.weight.grad.abs().sum()) > 0
    assert 0.2 < float(found["rerouted"]) < 0.8
    own = trainer.model.choices(batch, mtp=True)
    again, found = trainer.model(batch, weighing, own)
    assert own.keys() == ROUTED and float(found["rerouted"]) == 0
    assert torch.equal(again, trainer.model(batch, weighing)[0]) and not torch.equal(again, loss)


# ---------------------------------------------------------------------- spikes


def spiky(out: Path, store: Path, **changes: Any) -> tuple[Trainer, list[float]]:
    """A run whose update of step 9 throws the parameters away, every time it comes; and the rates it was given."""
    run = run_config(out, store, 2, (DENSE,), routing=RoutingConfig(2, spike=1.2, window=4, steps=5), **changes)
    trainer = launch.build(run)
    step, rates = trainer.optimizer.step, []

    def update(scale: float) -> float:
        rates.append(scale)
        return step(scale * (1000 if trainer.position.step == 9 else 1))

    trainer.optimizer.step = update  # type: ignore[method-assign]
    return trainer, rates


def test_a_spike_goes_back_once_and_routes_ahead_for_a_while(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, rates = spiky(tmp_path / "run", store, save_steps=4)
    assert trainer.train().step == 24
    # Step number 10 (the 11th) has the spike: from the checkpoint of 8 on, three steps are done again.
    assert len(rates) == 24 + 3
    assert "loss spike in step 11; on from step 8" in capsys.readouterr().err
    written = rows(tmp_path / "run")
    assert [int(row["step"]) for row in written] == list(range(1, 25))
    # On for steps 8 to 15, five after the spike's; the first two have nothing chosen for them yet.
    assert [i for i, row in enumerate(written) if row["anticipated"] == "1"] == list(range(10, 16))
    assert float(written[10]["loss"]) > 1.2 * float(written[9]["loss"]), "the same spike came again"
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [int(row["tokens"]) for row in written]


def test_a_run_killed_after_a_spike_goes_the_same_way(tmp_path: Path, store: Path) -> None:
    spiky(tmp_path / "whole", store, save_steps=4)[0].train()
    # Before the spike; after it, before the next checkpoint (it is met again); after that, with steps waiting in it.
    for count in (10, 5, 8):
        trainer, rates = spiky(tmp_path / "parts", store, save_steps=4)
        trainer.report = lambda p, done=rates, last=count: killed() if len(done) == last else None
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert [path.name for path in snapshot.all_in(tmp_path / "parts")] == ["step-00000008", "step-00000012"]
    assert any("tokens" in name for name in snapshot.load(tmp_path / "parts" / "step-00000012").routing)
    spiky(tmp_path / "parts", store, save_steps=4)[0].train()
    clock = {"seconds", "tokens_per_second"}
    one, other = (
        [{k: v for k, v in row.items() if k not in clock} for row in rows(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert one == other and len(one) == 24


def killed() -> None:
    raise KeyboardInterrupt


def test_a_spike_without_a_checkpoint_turns_it_on(tmp_path: Path, store: Path) -> None:
    trainer, rates = spiky(tmp_path / "run", store)
    trainer.train()
    assert len(rates) == 24
    assert [i for i, row in enumerate(rows(tmp_path / "run")) if row["anticipated"] == "1"] == [13, 14, 15]


def test_a_spike_is_a_loss_far_above_the_median() -> None:
    recent = RecentLosses(3)
    assert not any(recent.add(loss, 0, 1.5) for loss in (9.0, 2.0, 3.0))  # too few before them
    assert not recent.add(4.4, 0, 1.5) and recent.add(4.6, 0, 1.5)
    assert recent.add(float("nan"), 0, 1.5)
    other = RecentLosses(3)
    other.load(recent.state())
    assert other.add(7.0, 0, 1.5) and not other.add(6.8, 0, 1.5)  # 4.4 is the median, then 4.6
    assert not other.add(99.0, 1, 1.5)  # another stage


# ---------------------------------------------------------------------- what waits


def batch_of(tokens: Tensor) -> Batch:
    return Batch(tokens, tokens, torch.ones(tokens.shape), tokens < 0, Packing.whole(*tokens.shape))


def test_choices_wait_for_their_own_rows() -> None:
    """Also over a checkpoint, for another number of processes; what does not fit is dropped."""
    one = Anticipation(RoutingConfig(1), Group())
    batch = batch_of(torch.arange(20).view(4, 5))
    parts = [slice(0, 2), slice(2, 4)]

    def choose(piece: Batch) -> dict[int, Tensor]:
        return {6: piece.tokens.flatten().unsqueeze(1) % 3}

    one.look_ahead(7, batch, parts, choose)
    one.look_ahead(8, batch_of(batch.tokens[:3]), [slice(0, 3)], choose)
    second = Anticipation(RoutingConfig(1), Group(rank=1, size=2))
    second.load(one.state())
    own = batch_of(batch.tokens[1::2])
    choice = second.take(7, own)
    assert choice is not None and torch.equal(choice.of_rows(slice(1, 2))[6], batch.tokens[3].unsqueeze(1) % 3)
    assert second.take(7, own) is None and second.take(8, own) is None
    assert one.take(7, own) is None
    one.look_ahead(7, batch, parts, choose)
    off = Anticipation(RoutingConfig(), Group())
    off.load(one.state())
    assert one.take(7, batch) is not None and off.take(7, batch) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lag": -1}, "lag"),
        ({"spike": 1.5}, "needs a 'routing.lag'"),
        ({"lag": 2, "spike": 1.0}, "more than 1"),
        ({"lag": 2, "window": 0}, "window"),
        ({"lag": 2, "spike": 2.0, "steps": 0}, "steps"),
        ({"lags": 2}, "lags"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "run.yaml"
    good = "{out: o, train: t, tokenizer: k, tokens: 5, stages: [{length: 64}], routing: {lag: 3, spike: 2}}"
    path.write_text(good)
    assert RunConfig.from_yaml(path).routing == RoutingConfig(3, 2.0)
    path.write_text(good.replace("{lag: 3, spike: 2}", str(changes)))
    with pytest.raises(SettingsError, match=words):
        RunConfig.from_yaml(path)


def test_compiled_blocks_have_room_for_all_their_forms(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of experts or not, with gradients or without, for every block: none is left uncompiled."""
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend="eager"))
    config = torch._dynamo.config
    # This network of four blocks and one stage has few forms: a limit below PyTorch's stands for more of them.
    with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=4, accumulated_recompile_limit=4):
        for name in ("plain", "compiled"):
            run = run_config(tmp_path / name, store, 2, (DENSE,), tokens=128 * 4, compile=name == "compiled")
            launch.build(run).train()
    torch._dynamo.reset()
    plain, other = (rows(tmp_path / name) for name in ("plain", "compiled"))
    assert [row["anticipated"] for row in plain] == [row["anticipated"] for row in other]
    for one, two in zip(plain, other, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-3)
