"""The training loop.

The data, the schedule and the stage are functions of how far the run is, and nothing else; so a run that was stopped or
killed and started again does exactly what it would have done (a budget in minutes is followed by the clock instead,
added up over restarts). The loop is the same for one process and for many.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.process.streams import told
from foveal.train import snapshot
from foveal.train.anticipation import Anticipation
from foveal.train.batch import Batch, Feed
from foveal.train.curve import Means
from foveal.train.logs import Clock, Logs, Stopwatch
from foveal.train.loss import TrainTransformer, Weighing, gate_biases, move_biases
from foveal.train.optim import Optimizer
from foveal.train.parallel import Group, Shared
from foveal.train.prefetch import Prefetch
from foveal.train.record import Record
from foveal.train.settings import RunConfig, SettingsError, StageConfig
from foveal.train.snapshot import Position, Snapshot
from foveal.train.start import choose_trained, prepare_stage
from foveal.train.stopping import asked_to_stop
from foveal.train.structured import Circuit

_MAX_BAD_STEPS = 20
_CPU_TOKENS = 4096
_HELDOUT_SEED_STEP = 1 << 40
"""Step numbers of held-out sequences: beyond any run's."""


class TrainingError(FovealError, RuntimeError):
    """Training cannot go on (the loss stopped being a number)."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. `done` is the fraction of the budget used; `seconds_left` and `tokens_per_second` follow from
    this session's speed; `values` are the curve's newest means, when there is a new row."""

    position: Position
    done: float
    stage: int
    length: int
    tokens_per_second: float
    seconds_left: float
    values: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class _Done:
    """What a step found: its gradient's norm, and its loss over all processes (None when nobody asks, or the stage has
    none)."""

    norm: float
    loss: float | None


class Trainer:
    """One run: a network, its data and its optimiser, from where its checkpoints left it to the end of its budget."""

    def __init__(
        self,
        run: RunConfig,
        model: TrainTransformer,
        feed: Feed,
        heldout: Feed | None = None,
        *,
        group: Group | None = None,
        report: Report | None = None,
        record: Record | None = None,
    ) -> None:
        """Goes on from the newest checkpoint in ``run.out`` if there is one. `report` is called after every step;
        `record` is what the run is made of, kept in checkpoints and compared with theirs.

        Raises `SnapshotError` or `OptimError` when the checkpoint is of another network or run, `SettingsError` when
        the rows of a stage cannot be shared among the processes of `group`.
        """
        self.run, self.group, self.report, self.record = run, group or Group(), report, record
        self.feed, self.heldout, self.out = feed, heldout, Path(run.out)
        _check_shares(run, self.group)
        self.model = model.to(self.group.device)
        self.network = model.model
        self.shared = Shared(model, self.group)
        self.ratios = tuple(self.network.config.compress_ratios)
        circuit = Circuit.of(self.network.config) if run.keep_circuit else Circuit((), {})
        for name, parameter in self.network.named_parameters():
            if circuit.holds(name):
                parameter.requires_grad_(False)
        self.optimizer = Optimizer(self.network.named_parameters(), run.optim, self.group, circuit.columns)
        self.biases = gate_biases(self.network, circuit.holds)
        self.anticipation = Anticipation(run.routing, self.group)
        self.position = Position()
        self._means = Means()
        self.last_values: Mapping[str, float] = {}
        self.times: dict[str, float] = defaultdict(float)
        """Seconds in the parts of steps: data, forward, backward, optimizer (on a GPU: until they were queued)."""
        self._stop = False
        self._resume()
        if run.compile:
            _compile([*self.network.layers, *self.network.mtp], len(run.stages))
        self._logs = Logs(self.out, self.position) if self.group.first else None

    # ------------------------------------------------------------------ the run

    def train(self) -> Position:
        """Train until the budget is used up or a signal asks to stop; the last state is saved either way."""
        clock = Clock(self.position)
        stage: StageConfig | None = None
        bad, ahead = 0, False
        with asked_to_stop(self.stop), Prefetch(self.feed, self.run.workers) as prefetch:
            while True:
                stop, progress = self.group.agreed([float(self._stop), self.progress()])
                if stop or progress >= 1:
                    break
                current = self.stage_at(progress)
                if current is not stage or (self._mtp(current, progress) > 0) != ahead:
                    stage, ahead = current, self._mtp(current, progress) > 0
                    self._begin(stage, progress)
                self._look_ahead(stage, progress, prefetch)
                done = self._step(stage, progress, prefetch)
                bad = 0 if done.norm < float("inf") else bad + 1
                if bad >= _MAX_BAD_STEPS:
                    raise TrainingError(f"{bad} steps in a row had no finite gradient; the last checkpoint is intact")
                self._advance(stage, clock)
                self._tell(stage, clock)
                if self._spiked(stage, done):
                    self._answer_spike()
                elif self.group.agreed([float(self._save_is_due(clock))])[0]:
                    self.save()
                    clock.saved = time.monotonic()
        if stage is not None:
            self.save()
        if self._logs is not None:
            self._logs.close()
        return self.position

    def progress(self) -> float:
        """Fraction of the budget used, 0 to 1."""
        used = 0.0
        if self.run.tokens is not None:
            used = self.position.tokens / self.run.tokens
        if self.run.minutes is not None:
            used = max(used, self.position.seconds / (60 * self.run.minutes))
        return used

    def stage_at(self, progress: float) -> StageConfig:
        """The stage that is on when `progress` of the budget is used."""
        total = sum(stage.share for stage in self.run.stages)
        end = 0.0
        for stage in self.run.stages:
            end += stage.share / total
            if progress < end:
                return stage
        return self.run.stages[-1]

    def stop(self) -> None:
        """Ask `train` to save and return after the current step."""
        self._stop = True

    def _begin(self, stage: StageConfig, progress: float) -> None:
        prepare_stage(self.network, stage)
        choose_trained(self.network, self._weighing(stage, progress, 1, 1, 1), self.optimizer.parameters())
        self.shared.begin_stage()

    # ------------------------------------------------------------------ one step

    def _step(self, stage: StageConfig, progress: float, prefetch: Prefetch) -> _Done:
        rows = self.group.rows(stage.sequences)
        clock = Stopwatch(self.times)
        batch = prefetch.batch(self.position.step, rows, stage.length, stage.documents)
        batch = _weighing(batch, stage.recall_weight, self.run)
        choice = self.anticipation.take(self.position.step, batch)
        weights = torch.stack([batch.weights.sum(dtype=torch.float64), batch.mtp_weights.sum(dtype=torch.float64)])
        tokens, mtp_tokens = self.group.total(weights.to(self.group.device)).tolist()
        scale = self.run.schedule.scale(progress) * stage.lr
        self.optimizer.zero_grad()
        parts = self._parts(stage)
        loads: list[Tensor] = []
        spent = 0.0
        clock.lap("data")
        for part in parts:
            piece = batch.some(part).to(self.group.device, self.ratios)
            weighing = self._weighing(stage, progress, tokens, mtp_tokens, len(piece.tokens))
            with self.shared.gradients(complete=part is parts[-1]):
                loss, found = self.shared.runner(piece, weighing, choice.of_rows(part) if choice else None)
                clock.lap("forward")
                loss.backward()
                clock.lap("backward")
            self._note(piece, found)
            if self.anticipation.watches and "nll" in found:
                spent += float((found["nll"] * piece.weights.flatten()).sum())
            loads = [a + b for a, b in zip(loads, found["loads"], strict=True)] if loads else found["loads"]
        norm = self.optimizer.step(scale)
        clock.lap("optimizer")
        move_biases(self.biases, [self.group.total(load) for load in loads], self.run.loss.bias_speed)
        self._means.add("grad_norm", norm)
        self._means.add("lr", scale)
        if self.run.routing.lag:
            self._means.add("anticipated", float(choice is not None))
        if not self.anticipation.watches or stage.train == "indexer":
            return _Done(norm, None)
        total = self.group.total(torch.tensor(spent, dtype=torch.float64, device=self.group.device))
        return _Done(norm, float(total) / max(1e-9, tokens))

    def _parts(self, stage: StageConfig) -> list[slice]:
        """This process's rows of a step, as many at a time as are computed at once."""
        rows = len(self.group.rows(stage.sequences))
        micro = min(self.run.micro or self._rows_at_once(stage), rows)
        return [slice(start, start + micro) for start in range(0, rows, micro)]

    def _rows_at_once(self, stage: StageConfig) -> int:
        """As many as a GPU is given; on a CPU more rows at once cost memory and bring nothing."""
        return max(1, _CPU_TOKENS // stage.length) if self.group.device.type == "cpu" else stage.sequences

    def _weighing(self, stage: StageConfig, progress: float, tokens: float, mtp_tokens: float, rows: int) -> Weighing:
        """DDP and FSDP average gradients over processes, so a process's losses are scaled up by their number."""
        loss, size = self.run.loss, self.group.size
        return Weighing(
            tokens=max(1e-9, tokens) / size,
            mtp_tokens=max(1e-9, mtp_tokens) / size,
            rows=rows * size / stage.sequences,
            index_kl=loss.index_kl if stage.index_kl is None else stage.index_kl,
            balance=loss.balance,
            mtp=self._mtp(stage, progress),
            indexer_only=stage.train == "indexer",
        )

    def _mtp(self, stage: StageConfig, progress: float) -> float:
        """Weight of the MTP blocks' loss, 0 without such blocks."""
        if not len(self.network.mtp):
            return 0.0
        return self.run.loss.mtp[progress > self.run.schedule.decay_from] if stage.mtp is None else stage.mtp

    def _note(self, batch: Batch, found: Mapping[str, Any]) -> None:
        for name, key in _FOUND.items():
            if name in found:
                self._means.add(key, float(found[name]), len(batch.tokens))
        if "nll" not in found:
            return
        nll, weights, asked = found["nll"], batch.weights.flatten(), batch.asked.flatten()
        counted = weights > 0
        for name, mask, values in (
            ("loss", weights, nll),
            ("recall_loss", asked & counted, nll),
            ("recall_accuracy", asked & counted, found["correct"]),
            ("ordinary_loss", ~asked & counted, nll),
        ):
            count = float(mask.sum())
            if count:
                self._means.add(name, float((values * mask).sum()) / count, count)

    def _advance(self, stage: StageConfig, clock: Clock) -> None:
        tokens = stage.length * stage.sequences
        # One clock for all: each process asks by it whether the run is over, and what it then does is a collective.
        (seconds,) = self.group.agreed([clock.tick(tokens)])
        self._means.add("tokens_per_second", tokens / max(1e-9, seconds - self.position.seconds))
        self.position = Position(self.position.step + 1, self.position.tokens + tokens, seconds)

    # ------------------------------------------------------------------ anticipatory routing

    def _look_ahead(self, stage: StageConfig, progress: float, prefetch: Prefetch) -> None:
        """Before a step: choose the experts of the step `lag` steps further, with the parameters of now, and rounding
        and limits as in that step's stage."""
        lag, step = self.run.routing.lag, self.position.step
        if not self.anticipation.on(step + lag):
            return
        coming = self._coming(progress, lag)
        # All steps up to that one, in order: these are the next ones anyhow, and each is composed once.
        for ahead, (then, _) in enumerate(coming):
            rows = self.group.rows(then.sequences)
            batch = prefetch.batch(step + ahead, rows, then.length, then.documents, keep=True)
        # An indexer stage trains nothing that routes.
        if len(coming) <= lag or then.train == "indexer":
            return
        mtp = self._mtp(then, coming[-1][1]) > 0
        prepare_stage(self.network, then)
        self.anticipation.look_ahead(
            step + lag,
            batch,
            self._parts(then),
            lambda piece: self.model.choices(piece.to(self.group.device, self.ratios), mtp=mtp),
        )
        self.shared.rest()
        prepare_stage(self.network, stage)

    def _coming(self, progress: float, steps: int) -> list[tuple[StageConfig, float]]:
        """Stage and progress of this step and of `steps` more, or up to the run's end. Exact for a budget in tokens;
        the clock is taken to stand still."""
        coming: list[tuple[StageConfig, float]] = []
        tokens = self.position.tokens
        while len(coming) <= steps and progress < 1:
            stage = self.stage_at(progress)
            coming.append((stage, progress))
            tokens += stage.length * stage.sequences
            if self.run.tokens is not None:
                progress = max(progress, tokens / self.run.tokens)
        return coming

    def _spiked(self, stage: StageConfig, done: _Done) -> bool:
        """Whether the step just done is a loss spike to be answered."""
        if done.loss is None:
            return False
        spiked = self.anticipation.spiked(self.position.step - 1, self.run.stages.index(stage), done.loss)
        return bool(self.group.agreed([float(spiked)])[0])

    def _answer_spike(self) -> None:
        """Go back to the newest checkpoint and route ahead from there on. Without a checkpoint there is nothing to go
        back to, and the run goes on from where it is."""
        spike, found = self.position, snapshot.all_in(self.out)
        if found:
            self._restore(found[-1])
            # Time that was spent stays spent: a budget in minutes does not grow.
            self.position = replace(self.position, seconds=spike.seconds)
            if self._logs is not None:
                self._logs.close()
                self._logs = Logs(self.out, self.position)
        self.anticipation.begin(spike.step - 1)
        if self.group.first:
            message = f"loss spike in step {spike.step}; on from step {self.position.step} with anticipatory routing"
            told(message)

    # ------------------------------------------------------------------ held-out text

    @torch.no_grad()
    def validate(self, stage: StageConfig, count: int) -> dict[str, float]:
        """Recall on `count` held-out sequences, always the same ones. All processes must call it."""
        if self.heldout is None:
            return {}
        means = Means()
        for number in range(count):
            batch = self.heldout.batch(_HELDOUT_SEED_STEP + number, [0], stage.length, stage.documents)
            batch = batch.to(self.group.device, self.ratios)
            nll, correct = self.model.answers(batch)
            asked = batch.asked.flatten() & (batch.weights.flatten() > 0)
            many = float(asked.sum())
            if many:
                means.add("heldout_recall_loss", float((nll * asked).sum()) / many, many)
                means.add("heldout_recall_accuracy", float((correct & asked).sum()) / many, many)
        self.shared.rest()
        return means.take()

    # ------------------------------------------------------------------ telling and saving

    def _tell(self, stage: StageConfig, clock: Clock) -> None:
        step, every = self.position.step, self.run.heldout_every
        values: dict[str, float] = {}
        if step % self.run.log_every == 0 or self.progress() >= 1:
            values = self._gathered()
            if every and step % every == 0:
                values |= self.validate(stage, self.run.heldout_sequences)
            self.last_values = values
            if self._logs is not None:
                self._logs.add(self.position, self.run.stages.index(stage), stage.length, values)
        if self.report is not None and self.group.first:
            done, number = min(1.0, self.progress()), self.run.stages.index(stage)
            left = self.position.seconds * (1 - done) / max(1e-9, done)
            self.report(Progress(self.position, done, number, stage.length, clock.speed, left, values))

    def _gathered(self) -> dict[str, float]:
        """The means of all processes; starts anew."""
        self._means.restore(self._state_of_means())
        return self._means.take()

    def _state_of_means(self) -> dict[str, list[float]]:
        """Sums and weights over all processes."""
        state = self._means.state()
        if self.group.size == 1:
            return state
        flat = torch.tensor([state.get(name, [0.0, 0.0]) for name in _GATHERED], dtype=torch.float64)
        total = self.group.total(flat.to(self.group.device)).tolist()
        own = {name: pair for name, pair in state.items() if name not in _GATHERED}
        return own | {name: pair for name, pair in zip(_GATHERED, total, strict=True) if pair[1]}

    def _save_is_due(self, clock: Clock) -> bool:
        steps = self.run.save_steps
        by_steps = steps is not None and self.position.step % steps == 0
        return by_steps or time.monotonic() - clock.saved > 60 * self.run.save_minutes

    def save(self) -> None:
        """Write a checkpoint of where the run stands. All processes must call it."""
        parameters, optimizer, means = self.shared.state(), self.optimizer.state_dict(), self._state_of_means()
        routing = self.anticipation.state()
        if self.group.first:
            config = self.network.config.to_dict()
            record = self.record.to_dict() if self.record is not None else {}
            saved = Snapshot(self.position, parameters, optimizer, config, means, routing, record)
            snapshot.save(self.out, saved, keep=self.run.keep)
        self.group.wait()

    def _resume(self) -> None:
        found = snapshot.all_in(self.out)
        if not found:
            return
        try:
            saved = self._restore(found[-1])
        except snapshot.DamagedError as error:
            rest = "go on from the one before" if len(found) > 1 else "begin anew"
            raise snapshot.SnapshotError(f"{error}; move it away to {rest}") from error
        if self.record is not None and saved.record:
            changed = self.record.changes(saved.record, found[-1])
            if changed and self.group.first:
                told(f"settings changed since {found[-1].name}: {', '.join(changed)}")

    def _restore(self, path: Path) -> Snapshot:
        saved = snapshot.load(path)
        if saved.config != self.network.config.to_dict():
            raise snapshot.SnapshotError(
                f"{path} was written by a network of another shape; choose another 'out' or move it away"
            )
        try:
            self.shared.load(saved.parameters)
        except ValueError as error:
            raise snapshot.SnapshotError(f"{path} does not fit the network: {error}") from error
        self.optimizer.load_state_dict(saved.optimizer)
        self.anticipation.load(saved.routing)
        self.position = saved.position
        self._means.restore(saved.means if self.group.first else {})
        return saved


_GATHERED = (
    "loss", "recall_loss", "recall_accuracy", "ordinary_loss", "index_kl", "balance", "mtp_loss", "rerouted",
)  # fmt: skip
"""Means that every process has a share of; the rest is the same in all."""
_FOUND = {"index_kl": "index_kl", "balance": "balance", "mtp": "mtp_loss", "rerouted": "rerouted"}
"""Scalars that a forward pass finds, and what the curve calls them."""


def _weighing(batch: Batch, recall_weight: float | None, run: RunConfig) -> Batch:
    """The batch with the stage's weight on what is asked for, in place of the recipe's."""
    if recall_weight is None:
        return batch
    weights = torch.where(batch.asked & (batch.weights > 0), recall_weight, batch.weights)
    return Batch(batch.tokens, batch.targets, weights, batch.asked, batch.packing)


def _compile(blocks: list[nn.Module], stages: int) -> None:
    """All blocks share one cache, in which each has a form for every stage: told of experts or not, with gradients or
    without, first and later row lengths. PyTorch's limit of 8 would leave most uncompiled, without a word."""
    config = torch._dynamo.config
    forms = 8 * len(blocks) * stages
    config.recompile_limit = max(config.recompile_limit, forms)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, forms)
    for block in blocks:
        block.compile()


def _check_shares(run: RunConfig, group: Group) -> None:
    for number, stage in enumerate(run.stages):
        if stage.sequences % group.size:
            raise SettingsError(
                f"stage {number} has {stage.sequences} sequences a step, which {group.size} processes cannot share; "
                "make it a multiple"
            )
        each = stage.sequences // group.size
        if run.micro is not None and each % min(run.micro, each):
            raise SettingsError(f"stage {number}: {each} rows a process do not divide into 'micro' of {run.micro}")
