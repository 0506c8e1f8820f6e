"""The training loop.

What is special here: the data, the schedule and the stage are functions of how far the run is, and nothing else; so a
run that was stopped and started again does exactly what it would have done (a budget in minutes is followed by the
clock instead, added up over restarts).
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from foveal.train import snapshot
from foveal.train.curve import Curve, Means
from foveal.train.data import Composer, Sample
from foveal.train.loss import TokenLoss, TrainableModel, backward_head, gate_biases, move_biases
from foveal.train.optim import Optimizer
from foveal.train.settings import RunConfig, StageConfig
from foveal.train.snapshot import Position
from foveal.train.start import prepare_stage

_MAX_BAD_STEPS = 20
_HELDOUT_SEED_STEP = 1 << 40
"""Step numbers of held-out sequences: beyond any run's."""


class TrainingError(RuntimeError):
    """Training cannot go on (the loss stopped being a number)."""


class Trainer:
    """One run: a network, its data and its optimiser, from where its checkpoints left it to the end of its budget."""

    def __init__(
        self,
        run: RunConfig,
        parameters: nn.Module,
        model: TrainableModel,
        composer: Composer,
        heldout: Composer | None = None,
    ) -> None:
        """`parameters` holds what is trained and saved, `model` computes with it (they may be the same object).

        Goes on from the newest checkpoint in ``run.out`` if there is one. Raises `SnapshotError` or `OptimError` when
        it is of another network.
        """
        torch.set_num_threads(run.threads)
        self.run, self.module, self.model, self.composer, self.heldout = run, parameters, model, composer, heldout
        self.out = Path(run.out)
        self.optimizer = Optimizer(parameters.named_parameters(), run.optim)
        self.biases = gate_biases(parameters)
        self.position = Position()
        self._stop = False
        self._resume()
        self.curve = Curve(self.out / "curve.csv", self.position.step)
        self._means = Means()

    # ------------------------------------------------------------------ the run

    def train(self) -> Position:
        """Train until the budget is used up or a signal asks to stop; the last state is saved either way."""
        started = saved = time.monotonic()
        before = self.position.seconds
        stage: StageConfig | None = None
        bad = 0
        with self._signals():
            while not self._stop and (progress := self.progress()) < 1:
                current = self.stage_at(progress)
                if current is not stage:
                    stage = current
                    prepare_stage(self.module, stage)
                norm = self._step(stage, progress)
                bad = 0 if norm < float("inf") else bad + 1
                if bad >= _MAX_BAD_STEPS:
                    raise TrainingError(f"{bad} steps in a row had no finite gradient; the last checkpoint is intact")
                self._advance(stage, before + time.monotonic() - started)
                if self.position.step % self.run.log_every == 0:
                    self._log(stage)
                if time.monotonic() - saved > 60 * self.run.save_minutes:
                    self.save()
                    saved = time.monotonic()
        if stage is not None:
            self._log(stage)
            self.save()
        return self.position

    def progress(self) -> float:
        """Fraction of the budget used, 0 to 1."""
        used = 0.0
        if self.run.tokens:
            used = self.position.tokens / self.run.tokens
        if self.run.minutes:
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

    # ------------------------------------------------------------------ one step

    def _step(self, stage: StageConfig, progress: float) -> float:
        composer = self.composer.weighing(stage.recall_weight)
        samples = [composer.sample(self.position.step, stage.length, i) for i in range(stage.sequences)]
        tokens = torch.stack([sample.tokens for sample in samples])
        targets = torch.cat([sample.targets for sample in samples])
        weights = torch.cat([sample.weights for sample in samples])
        scale = self.run.schedule.scale(progress) * stage.lr
        self.optimizer.zero_grad()
        output = self.model.train_forward(tokens)
        loss, gradient = backward_head(self.model, output.streams, targets, weights)
        aside = self.run.loss.index_kl * output.index_kl + self.run.loss.balance * output.balance
        roots: list[Tensor] = [output.streams]
        gradients: list[Tensor | None] = [gradient]
        if aside.requires_grad:
            roots.append(aside)
            gradients.append(None)
        torch.autograd.backward(roots, gradients)
        norm = self.optimizer.step(scale)
        move_biases(self.biases, output.loads, self.run.loss.bias_speed)
        self._note(loss, samples)
        for name, value in (("index_kl", output.index_kl), ("balance", output.balance)):
            self._means.add(name, float(value.detach()))
        self._means.add("grad_norm", norm)
        self._means.add("lr", scale)
        return norm

    def _note(self, loss: TokenLoss, samples: list[Sample]) -> None:
        recall = torch.cat([sample.is_recall for sample in samples])
        ordinary = ~recall & (torch.cat([sample.weights for sample in samples]) > 0)
        self._means.add("loss", loss.value)
        for name, mask, values in (
            ("recall_loss", recall, loss.losses),
            ("recall_accuracy", recall, loss.correct.to(torch.float32)),
            ("ordinary_loss", ordinary, loss.losses),
        ):
            count = int(mask.sum())
            if count:
                self._means.add(name, float(values[mask].mean()), count)

    def _advance(self, stage: StageConfig, seconds: float) -> None:
        done = stage.length * stage.sequences
        self._means.add("tokens_per_second", done / max(1e-9, seconds - self.position.seconds), 1.0)
        self.position = Position(self.position.step + 1, self.position.tokens + done, seconds)

    # ------------------------------------------------------------------ held-out text

    @torch.no_grad()
    def validate(self, length: int, count: int) -> dict[str, float]:
        """Recall on `count` composed sequences of held-out text, always the same ones."""
        if self.heldout is None:
            return {}
        means = Means()
        for number in range(count):
            sample = self.heldout.sample(_HELDOUT_SEED_STEP + number, length)
            streams = self.model.train_forward(sample.tokens.unsqueeze(0)).streams
            logits = self.model.logits(streams)[sample.is_recall]
            targets = sample.targets[sample.is_recall]
            if len(targets):
                loss = torch.nn.functional.cross_entropy(logits, targets)
                right = (logits.argmax(-1) == targets).to(torch.float32).mean()
                means.add("heldout_recall_loss", float(loss), len(targets))
                means.add("heldout_recall_accuracy", float(right), len(targets))
        return means.take()

    # ------------------------------------------------------------------ telling and saving

    def _log(self, stage: StageConfig) -> None:
        means = self._means.take()
        if not means:
            return
        every = self.run.heldout_every
        if every and self.position.step % every == 0:
            means |= self.validate(stage.length, self.run.heldout_sequences)
        row = {**asdict(self.position), "stage": self.run.stages.index(stage), "length": stage.length, **means}
        self.curve.add(row)
        print(self._line(stage, means), file=sys.stderr, flush=True)

    def _line(self, stage: StageConfig, means: dict[str, float]) -> str:
        progress = min(1.0, self.progress())
        left = self.position.seconds * (1 - progress) / max(1e-6, progress)
        parts = [
            f"step {self.position.step}",
            f"{self.position.tokens / 1e6:.2f}M tokens of {stage.length}",
            f"loss {means.get('loss', float('nan')):.3f}",
            f"recall {means.get('recall_accuracy', float('nan')):.3f} ({means.get('recall_loss', float('nan')):.3f})",
            f"ordinary {means.get('ordinary_loss', float('nan')):.3f}",
            f"kl {means.get('index_kl', 0.0):.3f}",
            f"lr x{means.get('lr', 0.0):.3f}",
            f"norm {means.get('grad_norm', 0.0):.2f}",
            f"{means.get('tokens_per_second', 0.0):.0f} tok/s",
            f"{left / 60:.1f} min left",
        ]
        if "heldout_recall_accuracy" in means:
            parts.insert(4, f"held out {means['heldout_recall_accuracy']:.3f}")
        return " | ".join(parts)

    def save(self) -> Path:
        """Write a checkpoint of where the run stands."""
        config = self.run.model_config().to_dict()
        return snapshot.save(
            self.out,
            self.position,
            self.module.state_dict(),
            self.optimizer.state_dict(),
            config,
            keep=self.run.keep,
        )

    def _resume(self) -> None:
        found = snapshot.all_in(self.out)
        if not found:
            return
        saved = snapshot.load(found[-1])
        if saved.config != self.run.model_config().to_dict():
            raise snapshot.SnapshotError(
                f"{found[-1]} was written by a network of another shape; choose another 'out' or move it away"
            )
        load_parameters(self.module, saved.parameters, str(found[-1]))
        self.optimizer.load_state_dict(saved.optimizer)
        self.position = saved.position
        print(f"going on from {found[-1]}", file=sys.stderr, flush=True)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            print("stopping after this step; the same command goes on from here", file=sys.stderr, flush=True)
            self._stop = True
            signal.signal(number, signal.SIG_DFL)

        try:
            previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the caller handles signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def load_parameters(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy saved tensors into `module`. Raises `SnapshotError` when names or shapes differ."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise snapshot.SnapshotError(f"{where} does not fit the network: {error}") from error
