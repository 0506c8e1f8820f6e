"""What several agents on one shared context take in memory, beside one.

    python bench/agents.py                       eight agents on a million tokens, in the shipped model's layout
    python bench/agents.py --tokens 128k --agents 4 --dir /a/disk

The whole process is measured, not only what the cache counts. The base (made up) is saved in a store under `--dir`
(default: the system's temporary folder; removed afterwards) and opened as a shared context. Each agent forks it,
recalls from it, reads a suffix of its own and decodes a step, and all are kept alive. With the first one, all that is
derived from the base is there (`foveal.backends.cpu.slabs`), and what the engine works with. What the process takes
before that (model, Python, torch) is subtracted, which makes the ratio larger than a user sees.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
from pathlib import Path

import numpy as np
from store import made_up_memory

from foveal import Engine, Memory
from foveal.cache import Sequence
from foveal.cli.output import show_bytes
from foveal.cli.render import results, table
from foveal.memory import SharedContext, open_store
from foveal.plan import parse_tokens


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
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, tokens).tolist()
    engine.prefill(sequence, ids)
    engine.prefill(sequence, ids[:1])


def measure(engine: Engine, folder: Path, tokens: int, agents: int, suffix: int) -> list[int]:
    """Bytes that the process takes more than before, with one agent, with two, and so on."""
    with open_store(folder) as store:
        with made_up_memory(engine, tokens) as made_up:
            made_up.save_in(store, "base")
        before, sizes = resident(), []
        forks: list[Memory] = []
        with SharedContext.open(engine, "base", root=store) as shared:
            for number in range(agents):
                forks.append(shared.fork())
                forks[-1].recall(f"agent {number}:", max_tokens=4, ignore_eos=True)
                work(engine, forks[-1].sequence, suffix)
                sizes.append(resident() - before)
        return sizes


def main() -> None:
    """Print what one and what all take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1M")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--suffix", type=int, default=256, help="tokens each agent reads for itself")
    parser.add_argument("--dir", type=Path, help="where the store lies meanwhile")
    given = parser.parse_args()
    tokens = parse_tokens(given.tokens)
    # The agents go on behind a base that may fill the model's context.
    engine = Engine.open("nano", context_length=tokens + given.suffix + 4096)
    with engine.new_sequence() as warm:
        work(engine, warm, given.suffix)
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        sizes = measure(engine, Path(folder), tokens, given.agents, given.suffix)
    one, all_ = sizes[0], sizes[-1]
    rows = [
        ("one agent", show_bytes(one), "1"),
        (f"{given.agents} agents", show_bytes(all_), f"{all_ / one:.4f}"),
        ("each further one", show_bytes((all_ - one) / max(1, given.agents - 1)), ""),
    ]
    title = f"{given.agents} agents on {tokens:,} tokens, {given.suffix} of their own each"
    results().print(table(title, "memory>", "times one>", rows=rows))


if __name__ == "__main__":
    main()
