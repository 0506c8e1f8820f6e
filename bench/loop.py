"""How long clients wait for each other: the gaps between a client's tokens, and what `submit` takes while others run.

    python bench/loop.py

The network is made up: a step sleeps as long as a network of that size would take, so the figures are those of the loop
and the scheduler alone. Three parts: eight clients that stream side by side; `submit` while they do; one client that
streams while something is read.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import foveal
from foveal.batch import BatchEngine, Priority, Scheduler
from foveal.cache.contract import AnySegment, LayerUpdate, Observer
from foveal.config import ModelConfig
from foveal.engine import Engine
from foveal.formats import Array
from foveal.text import Tokenizer

NANO = Path(foveal.__file__).parent / "weights" / "nano"


class Sleeping:
    """A network whose step takes `step` seconds, and `token` more for each token beyond one a sequence."""

    def __init__(self, config: ModelConfig, step: float, token: float) -> None:
        self.config, self.step, self.token = config, step, token

    def __call__(self, tokens: Array, segments: Sequence[AnySegment], observer: Observer[Array] | None = None) -> Array:
        time.sleep(self.step + self.token * (len(tokens) - len(segments)))
        start = 0
        for segment in segments:
            _grow(self.config, segment, tokens[start : start + segment.count])
            start += segment.count
        return np.zeros((len(tokens), 1, 1), np.float32)

    def logits(self, streams: Array) -> Array:
        logits = np.zeros((len(streams), self.config.vocab_size), np.float32)
        logits[:, 7] = 1
        return logits


def _grow(config: ModelConfig, segment: AnySegment, tokens: Array) -> None:
    """What a step of a network without compression leaves: window rows."""
    for layer in range(config.num_hidden_layers):
        segment.state.append(layer, LayerUpdate(np.zeros((segment.count, config.head_dim), np.float32)))
    segment.state.advance(tokens)


def opened(step: float, token: float, budget: float | None = None) -> Engine:
    """An engine over a network of one layer that keeps a window only."""
    config = foveal.PRESETS["nano"].replace(
        num_hidden_layers=1, compress_ratios=(0,), num_nextn_predict_layers=0, num_hash_layers=0
    )
    network = Sleeping(config, step, token)
    batch = BatchEngine(network, scheduler=Scheduler(step_budget=budget), batched=True)
    return Engine(network, Tokenizer.from_file(NANO), weights=lambda: "made up", batch=batch)


def gaps(engine: Engine, tokens: int, found: list[float], begun: threading.Barrier | None = None) -> None:
    """Seconds between two events of one stream, as its caller sees them."""
    before = 0.0
    for number, _ in enumerate(engine.stream("x", max_tokens=tokens, ignore_eos=True)):
        now = time.perf_counter()
        if number:
            found.append(now - before)
        elif begun is not None:
            begun.wait()
            now = time.perf_counter()
        before = now


def said(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    print(
        f"{name}: median {1e3 * statistics.median(ordered):.2f} ms, p90 {1e3 * ordered[int(0.9 * len(ordered))]:.2f}, "
        f"worst {1e3 * ordered[-1]:.2f}  ({len(ordered)})",
        flush=True,
    )


def clients(count: int, tokens: int) -> None:
    """Clients side by side, and what submitting takes meanwhile."""
    with opened(0.020, 0.0) as engine:
        found: list[list[float]] = [[] for _ in range(count)]
        begun = threading.Barrier(count + 1)
        threads = [threading.Thread(target=gaps, args=(engine, tokens, one, begun)) for one in found]
        for thread in threads:
            thread.start()
        begun.wait()
        took = []
        for _ in range(50):
            began = time.perf_counter()
            job = engine.submit("y", max_tokens=1)
            took.append(time.perf_counter() - began)
            job.result()
        for thread in threads:
            thread.join()
        said(f"{count} clients, steps of 20 ms, gap between tokens", [gap for one in found for gap in one])
        said("submit while they run", took)


def beside_reading(budget: float | None, tokens: int) -> None:
    """One client, while a long text is read of which a chunk of 512 tokens takes 100 ms."""
    with opened(0.024, 0.1 / 512, budget) as engine, engine.new_sequence() as sequence:
        alone: list[float] = []
        gaps(engine, 20, alone)
        reading = threading.Thread(
            target=lambda: engine.prefill(sequence, [7] * 200_000, priority=Priority.BACKGROUND), daemon=True
        )
        found: list[float] = []
        begun = threading.Barrier(1)
        reading.start()
        gaps(engine, tokens, found, begun)
        said(f"a client alone, budget {budget or 'default'}", alone)
        said(f"a client beside reading, budget {budget or 'default'}", found)
        print(f"  read meanwhile: {sequence.length:,} tokens")
        engine.close()
        reading.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100, help="tokens of each stream")
    tokens = parser.parse_args().tokens
    clients(8, tokens)
    for budget in (None, 0.03, 0.1):
        beside_reading(budget, tokens)


if __name__ == "__main__":
    main()
