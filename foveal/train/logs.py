"""What a run keeps of itself beside its checkpoints: its clocks, and the curve's rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from foveal.train import snapshot
from foveal.train.curve import Curve
from foveal.train.snapshot import Position


class Stopwatch:
    """Adds the time since the last lap to a name's sum."""

    def __init__(self, times: dict[str, float]) -> None:
        self._times, self._last = times, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._times[name] += now - self._last
        self._last = now


class Clock:
    """Seconds of training over all sessions, and this session's speed in tokens a second (a running mean)."""

    def __init__(self, position: Position) -> None:
        self._before, self._began = position.seconds, time.monotonic()
        self.saved = self._last = self._began
        self.speed = 0.0

    def tick(self, tokens: int) -> float:
        """A step of `tokens` is done: the seconds of all sessions."""
        now = time.monotonic()
        speed = tokens / max(1e-9, now - self._last)
        self.speed = speed if not self.speed else 0.9 * self.speed + 0.1 * speed
        self._last = now
        return self._before + now - self._began


class Logs:
    """The curve's rows, as CSV and for TensorBoard."""

    def __init__(self, out: Path, position: Position) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._curve = Curve(out / "curve.csv", position.step)
        with snapshot.private():
            # The board's steps are tokens.
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=position.tokens + 1)

    def add(self, position: Position, stage: int, length: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._curve.add({**asdict(position), "stage": stage, "length": length, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, position.tokens)
        self._board.flush()

    def close(self) -> None:
        self._board.close()
