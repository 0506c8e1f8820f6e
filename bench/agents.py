"""What several agents on one base take in memory, beside one: the base is read (here: made up) once.

    python bench/agents.py                       eight agents on a million tokens, in the shipped model's layout
    python bench/agents.py --tokens 128k --agents 4

What is special here: the whole process is measured, not only what the cache counts. Each agent forks the base, reads a
suffix of its own and decodes a step, and all are kept alive. With the first one all that is derived from the base is
there (`foveal.cache.slabs`), and what the engine works with. What the process takes without any base (model, Python,
torch) is subtracted, which makes the ratio larger than a user sees.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
from pathlib import Path

import torch

from foveal import Engine
from foveal.cache import Sequence, parse_tokens
from foveal.cli.output import results, show_bytes, table
from foveal.measure import make_image


def resident() -> int:
    """Bytes of memory that the process takes, in RAM. What was freed and is only kept for the next allocation goes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("the system does not say how much memory a process takes")


def work(engine: Engine, sequence: Sequence, tokens: int) -> None:
    """Read so many random tokens, then decode a step on the sequence itself."""
    ids = torch.randint(0, engine.config.vocab_size, (tokens,)).tolist()
    engine.prefill(sequence, ids)
    engine.prefill(sequence, ids[:1])


def main() -> None:
    """Print what one and what all take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1M")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--suffix", type=int, default=256, help="tokens each agent reads for itself")
    given = parser.parse_args()
    engine = Engine.open("nano")
    tokens = parse_tokens(given.tokens)
    with engine.new_sequence() as warm:
        work(engine, warm, given.suffix)
    before = resident()
    base = engine.restore_sequence(make_image(engine.pool.layout, tokens))
    agents = []
    one = 0
    for _ in range(given.agents):
        agents.append(base.fork())
        work(engine, agents[-1], given.suffix)
        one = one or resident() - before
    all_ = resident() - before
    rows = [
        ("one agent", show_bytes(one), "1"),
        (f"{given.agents} agents", show_bytes(all_), f"{all_ / one:.4f}"),
        ("each further one", show_bytes((all_ - one) / max(1, given.agents - 1)), ""),
    ]
    title = f"{given.agents} agents on {tokens:,} tokens, {given.suffix} of their own each"
    results().print(table(title, "memory>", "times one>", rows=rows))


if __name__ == "__main__":
    main()
