"""Anticipatory routing: which experts a step uses is chosen some steps before it (the report, on stability).

Step t computes with parameters theta_t (balancing biases included; its update makes theta_(t+1) of them). Before it
does, the network runs with theta_t on the rows of step t + lag, and what its routers choose waits here until that step.
So step t's tokens go to the experts that theta_(t-lag) chose, with the weights that theta_t gives them. What waits is
part of a checkpoint: a run goes on exactly where it was.

The report says neither how many steps lie between, nor what counts as a spike, nor for how long a run stays so: these
are settings here.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.train.batch import Batch
from foveal.train.parallel import Group
from foveal.train.settings import RoutingConfig

_TOKENS = "tokens"


@dataclass(frozen=True)
class Choice:
    """The experts [B, T, A] int32 chosen for the `tokens` [B, T] of a step (this process's rows), by layer."""

    tokens: Tensor
    experts: dict[int, Tensor]

    def of_rows(self, rows: slice) -> dict[int, Tensor]:
        """The experts [b * T, A] int64 of some rows, on their device."""
        return {layer: experts[rows].flatten(0, 1).to(torch.int64) for layer, experts in self.experts.items()}


class Anticipation:
    """The choices that wait for their steps, and when steps are routed by them."""

    def __init__(self, config: RoutingConfig, group: Group) -> None:
        self.config, self._group = config, group
        self._waiting: dict[int, Choice] = {}
        self._losses = RecentLosses(config.window)
        self._until = 0
        """With `spike`: steps before this one are routed ahead."""

    @property
    def watches(self) -> bool:
        """Whether `spiked` wants the loss of every step."""
        return self.config.spike is not None

    def on(self, step: int) -> bool:
        """Whether `step` is to be routed by what was chosen before."""
        return self.config.lag > 0 and (not self.watches or step < self._until)

    def look_ahead(
        self, step: int, batch: Batch, parts: Sequence[slice], choose: Callable[[Batch], Mapping[int, Tensor]]
    ) -> None:
        """Keep for `step` what `choose` ([b * T, A] by layer) says for its `batch`, a part of the rows at a time."""
        chosen = [choose(batch.some(part)) for part in parts]
        rows = batch.tokens.shape
        experts = {
            layer: torch.cat([part[layer] for part in chosen]).to(torch.int32).unflatten(0, rows) for layer in chosen[0]
        }
        self._waiting[step] = Choice(batch.tokens, experts)

    def take(self, step: int, batch: Batch) -> Choice | None:
        """What was chosen for `step`. None, and the step routes as usual, when nothing was (the first `lag` steps) or
        it was for other rows (of another stage than expected)."""
        choice = self._waiting.get(step)
        self._waiting = {other: kept for other, kept in self._waiting.items() if other > step}
        if choice is None or not self.on(step) or not torch.equal(choice.tokens, batch.tokens):
            return None
        device = self._group.device
        return Choice(choice.tokens, {layer: experts.to(device) for layer, experts in choice.experts.items()})

    # ------------------------------------------------------------------ spikes

    def spiked(self, step: int, stage: int, loss: float) -> bool:
        """Take in the loss of `step` in stage number `stage`. Whether it is a spike to be answered: none is while
        the last one's answer lasts, so a spike that comes again does not send the run back for ever."""
        if self.config.spike is None:
            return False
        spike = self._losses.add(loss, stage, self.config.spike)
        return spike and step >= self._until

    def begin(self, step: int) -> None:
        """Answer a spike at `step`: on until `steps` steps after it, wherever the run goes back to."""
        self._until = step + 1 + self.config.steps

    # ------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Tensor]:
        """All that `load` goes on with, with the rows of all processes; they must all call this. Empty when off."""
        found: dict[str, Tensor] = {}
        for step, choice in self._waiting.items():
            found[f"{step}.{_TOKENS}"] = self._group.all_rows(choice.tokens).cpu()
            for layer, experts in choice.experts.items():
                found[f"{step}.{layer}"] = self._group.all_rows(experts).cpu()
        if self.watches:
            found |= {"until": torch.tensor(self._until), **self._losses.state()}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, on any number of processes. Rows that they cannot share are dropped."""
        self._until = int(state.get("until", 0))
        self._losses.load(state)
        steps: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            step, dot, part = name.partition(".")
            if dot and len(tensor) % self._group.size == 0:
                steps.setdefault(int(step), {})[part] = tensor[self._group.rank :: self._group.size]
        self._waiting = {}
        for number, parts in steps.items():
            tokens = parts.pop(_TOKENS)
            self._waiting[number] = Choice(tokens, {int(layer): experts for layer, experts in parts.items()})


class RecentLosses:
    """The losses of the last `window` steps of a stage, to tell a spike by."""

    def __init__(self, window: int) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._stage = -1

    def add(self, loss: float, stage: int, factor: float) -> bool:
        """Take in a step's loss; whether it is no number or, as soon as there are `window` before it, more than
        `factor` times their median. A new stage has other rows and another loss: it starts anew."""
        if stage != self._stage:
            self._recent.clear()
            self._stage = stage
        if not math.isfinite(loss):
            return True
        full = len(self._recent) == self._recent.maxlen
        spike = full and loss > factor * statistics.median(self._recent)
        self._recent.append(loss)
        return spike

    def state(self) -> dict[str, Tensor]:
        return {"losses": torch.tensor(list(self._recent), dtype=torch.float64), "stage": torch.tensor(self._stage)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._recent.clear()
        if "losses" in state:
            self._recent.extend(state["losses"].tolist())
        self._stage = int(state.get("stage", -1))
