"""How fast every operation is on each instruction set that runs here: `python bench/isas.py --preset nano-bench`.

One network for each instruction set, all open at once and on the same weights, take turns step by step, so that
whatever else the machine does hits all of them alike. The least times count, and their ratios to those of the first
instruction set, which is used unless another is asked for. Below the operations of a step stand those roundings that no
profile names, alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from foveal import _native
from foveal.backends.cpu.network import NativeNetwork
from foveal.cache import CacheFormat, CacheLayout, PagePool, Segment, Sequence
from foveal.checkpoint import Checkpoint, open_checkpoint
from foveal.cli.output import parse_count
from foveal.cli.render import results, table
from foveal.formats import Array
from foveal.measure import OtherWork, cores, machine_facts, make_image, preset_model

Times = dict[str, dict[str, float]]
"""Operation to instruction set to the least seconds."""
STEPS = 16
"""Tokens of a decoding turn."""
ROUNDINGS: Mapping[str, Callable[[_native.Runtime, Array], None]] = {
    "quantize_activations": _native.quantize_activations,
    "quantize_index": lambda runtime, x: _native.quantize_index(runtime, x.reshape(-1, 128)),
    "quantize_kv": lambda runtime, x: _native.quantize_kv(runtime, x, 64),
}


class Runner:
    """One network on one instruction set, and a sequence of `depth` tokens that nobody read."""

    def __init__(self, isa: str, checkpoint: Checkpoint, pool: PagePool, depth: int, threads: int) -> None:
        self.isa = isa
        self.network = NativeNetwork(checkpoint.config, checkpoint.weights, threads=threads, isa=isa)
        self.sequence = Sequence.restore(pool, make_image(pool.layout, depth), dtype=np.float32)
        self.sequence.keep_tail()
        self.depth = depth

    def step(self, tokens: int) -> None:
        """Run the next `tokens` tokens, and the head on the last."""
        ids = np.arange(tokens) % self.network.config.vocab_size
        streams = self.network(ids, [Segment(self.sequence, tokens)])
        self.network.logits(streams[-1:])

    def turn(self, tokens: int, steps: int) -> dict[str, float]:
        """Seconds by operation of one step among `steps`; the sequence is where it was afterwards."""
        self.step(tokens)  # what it needs of memory is near now
        self.network.reset_profile()
        began = time.perf_counter()
        for _ in range(steps):
            self.step(tokens)
        spent = {**self.network.profile(), "all": time.perf_counter() - began}
        self.sequence.truncate(self.depth)
        return {name: seconds / steps for name, seconds in spent.items()}


def keep_least(times: Times, isa: str, spent: Mapping[str, float]) -> None:
    """Into `times`, where `spent` is less."""
    for name, seconds in spent.items():
        found = times.setdefault(name, {})
        found[isa] = min(seconds, found.get(isa, seconds))


def measure(runners: list[Runner], rounds: int, read: int) -> dict[str, Times]:
    """The least times of `rounds` turns, reading `read` tokens at once and decoding."""
    found: dict[str, Times] = {"reading": {}, "decoding": {}, "alone": {}}
    x = np.random.default_rng(0).standard_normal((512, 4096), dtype=np.float32)
    for _ in range(rounds):
        for runner in runners:
            keep_least(found["reading"], runner.isa, runner.turn(read, 1))
            keep_least(found["decoding"], runner.isa, runner.turn(1, STEPS))
            for name, rounding in ROUNDINGS.items():
                began = time.perf_counter()
                rounding(runner.network.runtime, x)
                keep_least(found["alone"], runner.isa, {name: time.perf_counter() - began})
    return found


def show(found: dict[str, Times], isas: list[str]) -> None:
    """Milliseconds on the first instruction set, and how many times as long the others take."""
    shown = table("", "operation", f"{isas[0]}, ms>", *(f"{isa}>" for isa in isas[1:]))
    for phase, times in found.items():
        for name, by_isa in sorted(times.items(), key=lambda item: -item[1][isas[0]]):
            first = by_isa[isas[0]]
            ratios = (f"x {by_isa[isa] / first:.2f}" if first else "" for isa in isas[1:])
            shown.add_row(phase, name, f"{1e3 * first:.3f}", *ratios)
    results().print(shown)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="Compare the instruction sets that this machine runs.")
    parser.add_argument("--preset", default="nano-bench")
    parser.add_argument("--model", type=Path, help="or a directory in the official layout")
    parser.add_argument("--depth", type=parse_count, default=131072, help="tokens that were read before")
    parser.add_argument("--read", type=int, default=512, help="tokens to read at once")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--isas", help="some of them, the first being what the others are held against")
    arguments = parser.parse_args()
    isas = arguments.isas.split(",") if arguments.isas else _native.available_isas()
    others = OtherWork()
    with preset_model(arguments.preset) if arguments.model is None else nullcontext(arguments.model) as folder:
        checkpoint = open_checkpoint(folder)
        pool = PagePool(CacheLayout(checkpoint.config, CacheFormat(kv="fp8", index="fp4")))
        runners = [Runner(isa, checkpoint, pool, arguments.depth, arguments.threads) for isa in isas]
        found = measure(runners, arguments.rounds, arguments.read)
    print(f"{machine_facts()['cpu']}, {arguments.threads} threads, {arguments.depth:,} tokens deep\n")
    show(found, isas)
    print(f"\nother processes kept {others.cores() or 0.0:.2f} cores busy meanwhile")


if __name__ == "__main__":
    main()
