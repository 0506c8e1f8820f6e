"""Agents on one base, decoding side by side, against as many on bases of their own.

    python bench/together.py                        eight agents, bases of 128k tokens, the nano
    python bench/together.py --agents 4 --tokens 64k

The bases are real source (the installed packages of this Python). Every agent asks something of its own at the end of
its base and decodes; only steps that all of them take part in are timed. Both kinds take turns, so that noise of the
machine meets both alike.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from store import made_up_memory

from foveal import Engine
from foveal.batch import Job
from foveal.cache import Sequence
from foveal.measure import OtherWork
from foveal.plan import parse_tokens


def decode(engine: Engine, bases: list[Sequence], count: int) -> float:
    """Tokens a second of all agents together, while all of them decode."""
    prompts = [f"\n# agent {number}: what does this do?\n" for number in range(len(bases))]
    jobs = [
        engine.submit(prompt, base=base, max_tokens=count, ignore_eos=True)
        for prompt, base in zip(prompts, bases, strict=True)
    ]

    def times(job: Job) -> list[float]:
        return [time.perf_counter() for event in job if event.sampled]

    with ThreadPoolExecutor(len(jobs)) as threads:
        each = list(threads.map(times, jobs))
    first, last = max(at[0] for at in each), min(at[-1] for at in each)
    return sum(first < moment <= last for at in each for moment in at) / (last - first)


def source(engine: Engine, tokens: int) -> list[int]:
    """So many tokens of Python, from the packages beside this one and Python's own library."""
    ids: list[int] = []
    for folder in sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"):
        for path in sorted(Path(folder).rglob("*.py")):
            if len(ids) >= tokens:
                return ids[:tokens]
            ids += engine.tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
    raise SystemExit(f"only {len(ids):,} tokens of source here: ask for fewer agents or tokens")


def bases_of(engine: Engine, count: int, tokens: int, made_up: bool) -> list[Sequence]:
    """So many sequences that have nothing in common."""
    if made_up:
        return [made_up_memory(engine, tokens).sequence for _ in range(count)]
    ids, bases = source(engine, tokens * count), []
    for number in range(count):
        bases.append(engine.new_sequence())
        engine.prefill(bases[-1], ids[number * tokens : (number + 1) * tokens])
        print(f"base {number + 1} of {count} read", flush=True)
    return bases


def show(kind: str, rates: list[float], steps: int, seconds: dict[str, float]) -> None:
    """A line with the rate, and the operations that take more than a hundredth of a millisecond a step."""
    parts = {name: 1000 * each / steps for name, each in seconds.items()}
    times = ", ".join(f"{name} {each:.2f}" for name, each in parts.items() if each > 0.01)
    low, high = min(rates), max(rates)
    print(f"{kind}: {statistics.median(rates):,.0f} tokens/s ({low:,.0f} to {high:,.0f}); ms a step: {times}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--tokens", type=parse_tokens, default=128 * 1024, help="of a base")
    parser.add_argument("--decode", type=int, default=200, help="tokens of each agent")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--made-up", action="store_true")
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()
    with Engine.open(options.model) as engine:
        bases = bases_of(engine, options.agents, options.tokens, options.made_up)
        kinds = {"on one base": [bases[0]] * options.agents, "on bases of their own": bases}
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        seconds: dict[str, dict[str, float]] = {}
        other = OtherWork()
        for turn in range(options.rounds + 1):
            for kind, sequences in kinds.items():
                engine.network.reset_profile()
                rate = decode(engine, sequences, options.decode)
                if turn:  # the first warms both up
                    rates[kind].append(rate)
                    seconds[kind] = engine.network.profile()
        for kind in kinds:
            show(kind, rates[kind], options.decode, seconds[kind])
        one, own = rates.values()
        ratios = [a / b for a, b in zip(one, own, strict=True)]
        print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
        print(f"others used {other.cores():.2f} cores meanwhile")


if __name__ == "__main__":
    main()
