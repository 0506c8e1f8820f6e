"""Foveal, through the same `Meter` that `foveal bench` uses."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import foveal
from foveal.cache import Sequence
from foveal.engine import Engine
from foveal.measure import Settings
from foveal.measure.speed import Meter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from peer.worker import CHUNK, Timing, serve


class Foveal:
    """One engine, and for each depth the sequence that was read before it."""

    def __init__(self, request: dict[str, Any]) -> None:
        settings = Settings(request["checkpoint"], request["threads"], depths=(CHUNK,), repetitions=1)
        self.engine = Engine.open(settings.model, threads=settings.threads)
        self.meter = Meter(self.engine, settings, lambda text: None)
        self.meter.warm_up()
        self.pasts: dict[int, Sequence] = {}

    def describe(self) -> dict[str, Any]:
        """Version, network and cache format."""
        network = type(self.engine.network).__name__
        return {"version": foveal.__version__, "network": network, "cache": str(self.engine.kv)}

    def prepare(self, depth: int, jump: bool) -> None:
        sequence = self.meter.filled(depth - CHUNK) if jump else self.engine.new_sequence()
        self.meter.read(sequence, depth - CHUNK - sequence.length)
        sequence.keep_tail()
        self.pasts[depth] = sequence

    def measure(self, depth: int, decode: int) -> Timing:
        sequence = self.pasts[depth]
        timing = Timing(self.meter.read(sequence, CHUNK))
        timing.steps = self.meter.decode(sequence, 1, decode).steps
        sequence.truncate(depth - CHUNK)
        return timing


if __name__ == "__main__":
    serve(Foveal)
