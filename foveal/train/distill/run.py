"""The run: first every layer by itself, then KL(source || student) from end to end at the places that are taught.

A snapshot holds everything; the same call goes on from it. The step's number decides what is read and how fast is
learnt, so a run that was stopped does what it would have done.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveal.convert.fade import VERSION
from foveal.convert.learned import save_slots
from foveal.train.curve import Curve, Means
from foveal.train.distill.layerwise import layer_errors
from foveal.train.distill.opening import SNAPSHOT, Opened
from foveal.train.distill.rows import KINDS, Row, RowMaker
from foveal.train.distill.settings import DistillConfig, StageConfig
from foveal.train.distill.student import Student
from foveal.train.logs import Clock
from foveal.train.snapshot import Position, SnapshotError, private
from foveal.train.stopping import asked_to_stop
from foveal.train.trainer import Progress, TrainingError

CURVE = "curve.csv"
COLUMNS = ("step", "stage", "length", "tokens", "seconds", *KINDS, "grad_norm", "lr", "tokens_per_second")
"""Of the curve: for each kind of row the error of layers (stages of "layers") or the divergence in nats a token."""
_SLOW = {"offset": 0.3, "bias": 15.0, "sink": 15.0}
"""Learning rates of small parts, in parts of the matrices'."""
_BETAS, _EPSILON, _CLIP = (0.9, 0.97), 1e-10, 1.0
_WARMUP, _FLOOR = 20, 0.02
_MAX_BAD_STEPS = 20

Report = Callable[[Progress], None]


class Distillation:
    """A student in training, from where its snapshot left it to the end of its last stage."""

    def __init__(self, config: DistillConfig, opened: Opened, report: Report | None = None) -> None:
        """Goes on from the snapshot in ``config.out`` if there is one. `report` is called after every step.

        Raises `SnapshotError` when the snapshot is of another source, seed or other heads.
        """
        self.config, self.opened, self.report, self.out = config, opened, report, Path(config.out)
        self.student = opened.student.train()
        self.position = Position()
        self._means, self._stop = Means(), False
        self.last_values: dict[str, float] = {}
        """The curve's newest row."""
        self._makers: dict[int, RowMaker] = {}
        groups = [
            {"params": [p], "scale": _SLOW.get(name.rsplit(".", 1)[-1], 1.0)}
            for name, p in self.student.learned().items()
        ]
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=_BETAS, eps=_EPSILON)
        self.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (self.out / SNAPSHOT).is_file():
            self._restore(self.out / SNAPSHOT)
        self._curve = Curve(self.out / CURVE, self.position.step, COLUMNS)

    def train(self) -> Position:
        """Train to the end, or until a signal asks to stop; the last state is saved either way."""
        clock, bad = Clock(self.position), 0
        with asked_to_stop(self.stop):
            while not self._stop and self.position.step < self.config.steps:
                number, stage, place = self.stage_at(self.position.step)
                if place == 0:
                    self.optimizer.state.clear()  # another stage's gradients are of another size
                tokens, norm = self._one_step(stage, place)
                bad = 0 if math.isfinite(norm) else bad + 1
                if bad >= _MAX_BAD_STEPS:
                    raise TrainingError(f"{bad} steps in a row had no finite gradient; the last snapshot is intact")
                seconds = clock.tick(tokens)
                self._means.add("tokens_per_second", tokens / max(1e-9, seconds - self.position.seconds))
                self.position = Position(self.position.step + 1, self.position.tokens + tokens, seconds)
                self._tell(number, stage, clock)
                if time.monotonic() - clock.saved > 60 * self.config.save_minutes:
                    self.save()
                    clock.saved = time.monotonic()
        self.save()
        return self.position

    def stop(self) -> None:
        """Ask `train` to save and return after the current step."""
        self._stop = True

    def progress(self) -> float:
        """Fraction of the steps done, 0 to 1."""
        return self.position.step / self.config.steps

    def stage_at(self, step: int) -> tuple[int, StageConfig, int]:
        """The stage that `step` belongs to, its number, and the step's place in it."""
        for number, stage in enumerate(self.config.stages):
            if step < stage.steps:
                return number, stage, step
            step -= stage.steps
        raise IndexError("no stage is left")

    # ------------------------------------------------------------------ one step

    def _one_step(self, stage: StageConfig, place: int) -> tuple[int, float]:
        """The tokens that were read, and the gradient's norm. A step without a finite gradient changes nothing."""
        maker = self._makers.get(stage.length)
        if maker is None:
            maker = self._makers[stage.length] = self.opened.maker(stage.length, self.config.seed)
        self.optimizer.zero_grad()
        tokens = 0
        for number in range(stage.rows):
            row = maker.row(self.position.step * stage.rows + number)
            tokens += len(row.tokens)
            if stage.teach == "layers":
                error = layer_errors(self.student, row, 1 / stage.rows)
            else:
                loss = divergence(self.student, row)
                (loss / stage.rows).backward()
                error = loss.detach()
            self._means.add(row.kind, float(error))
        norm = float(torch.nn.utils.clip_grad_norm_(self.student.learned().values(), _CLIP))
        rate = learning_rate(stage, place)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        if math.isfinite(norm):
            self.optimizer.step()
        self._means.add("grad_norm", norm)
        self._means.add("lr", rate)
        return tokens, norm

    def _tell(self, number: int, stage: StageConfig, clock: Clock) -> None:
        values = {}
        if self.position.step % self.config.log_every == 0 or self.position.step == self.config.steps:
            values = self.last_values = self._means.take()
            row: dict[str, Any] = {"step": self.position.step, "stage": number, "length": stage.length}
            row |= {"tokens": self.position.tokens, "seconds": self.position.seconds}
            with private():
                self._curve.add({**row, **values})
        if self.report is not None:
            left = (self.config.steps - self.position.step) * self.position.tokens / self.position.step
            seconds = left / max(1e-9, clock.speed)
            done = self.progress()
            self.report(Progress(self.position, done, number, stage.length, clock.speed, seconds, values))

    # ------------------------------------------------------------------ snapshots

    def save(self) -> None:
        """Write the snapshot, whole or not at all."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.student.learned().items():
            found[name] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"adam.{key}.{name}"] = value
        found |= {f"constant.{index}": layer.constant for index, layer in self.student.packed_layers().items()}
        about = {"position": self.position.__dict__, "record": self._record(), "means": self._means.state()}
        writing = self.out / f"{SNAPSHOT}.{os.getpid()}.tmp"
        with private():
            tensors = {name: tensor.contiguous().clone() for name, tensor in found.items()}
            save_file(tensors, writing, metadata={name: json.dumps(value) for name, value in about.items()})
        os.replace(writing, self.out / SNAPSHOT)

    def export(self, path: Path) -> None:
        """Write what was learned as a file that `foveal convert --slots` reads. Raises `SnapshotError` before the first
        snapshot: nothing was learned."""
        if not self.position.step:
            raise SnapshotError(f"{self.out} has no snapshot of this run; run it first, or name its folder (out=DIR)")
        source = self.opened.source
        with private():
            save_slots(path, self.student.packed(), source.shape, f"{source.name}, {self.position.step} steps")

    def _record(self) -> dict[str, Any]:
        config, heads = self.config, {str(layer): list(of) for layer, of in self.opened.heads.items()}
        record = {"fade": VERSION, "source": self.opened.identity, "seed": config.seed, "heads": heads}
        return {**record, "text": list(config.text), "start_from": config.start_from}

    def _restore(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt", device=str(self.student.fade.device)) as file:
                about = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            was, now = about["record"], self._record()
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise SnapshotError(f"cannot go on from {path}: {error}") from error
        for name, value in now.items():
            if was.get(name) == value:
                continue
            if name == "fade":
                raise SnapshotError(f"{path} was trained with an earlier fade; begin anew in another 'out'")
            raise SnapshotError(
                f"{path} was trained with {name}={was.get(name)}, and now it is {value}; choose another 'out', or "
                "give what it was trained with"
            )
        self.position = Position(**about["position"])
        self._means.restore(about["means"])
        with torch.no_grad():
            for name, parameter in self.student.learned().items():
                parameter.copy_(found[name])
                state = {key: found.get(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if state["step"] is not None:
                    self.optimizer.state[parameter] = {key: value for key, value in state.items() if value is not None}
        for index, layer in self.student.packed_layers().items():
            layer.constant = found[f"constant.{index}"]


def learning_rate(stage: StageConfig, place: int) -> float:
    """Of step `place` of a stage."""
    risen = min(1.0, (place + 1) / _WARMUP)
    return stage.rate * risen * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * place / stage.steps)))


def divergence(student: Student, row: Row) -> Tensor:
    """KL(source || student) at the row's places, the mean."""
    device = student.fade.device
    tokens, places = row.tokens.to(device), row.places.to(device)
    with torch.no_grad():
        hidden = student.source.hidden(tokens[None])[0, places]
        theirs = F.linear(hidden, student.source.head).float().log_softmax(-1)
    ours = student.logits(tokens, places).log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()
