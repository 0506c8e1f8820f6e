"""The next morning: what was read yesterday, the process killed, its files out of the page cache, and a first token.

    python bench/morning.py --tokens 500k --dir /a/disk

A server reads real source into a memory and answers behind it: 1,000 tokens with their log-probabilities. It is killed
(SIGKILL), its store is dropped from the page cache, and another server is started, which answers the same. Told are the
seconds from the request, and from the start of the process, to the first token; the bytes that were read from storage
for it; and whether all log-probabilities are the same numbers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store import forget_files
from streams import Server, Stream, real_source, run, serving

from foveal import Engine
from foveal.cli.output import show_bytes
from foveal.measure import OtherWork
from foveal.memory import Memory, open_store
from foveal.plan import parse_tokens

OUTPUT = 1000
CUE = "def main(argv=None):\n"


def read(store: Path, source: Path) -> tuple[int, float]:
    """Read a source as memory ``day``; how many tokens those are, and the seconds."""
    with Engine.open("nano") as engine, open_store(store) as opened:
        began = time.perf_counter()
        with Memory.read(engine, source, name="day", root=opened) as memory:
            memory.save("day", root=opened)
            return memory.length, time.perf_counter() - began


def question(count: int) -> dict[str, Any]:
    """The request: the same each time."""
    sampling = {"temperature": 0, "ignore_eos": True, "max_tokens": count, "logprobs": 1}
    return {"model": "nano@day", "prompt": CUE} | sampling


@contextmanager
def morning(store: Path) -> Iterator[tuple[Server, float]]:
    """A server on files that are not in the page cache; and when its process began."""
    forget_files(store)
    os.sync()
    began = time.perf_counter()
    with serving(store, "--no-save-prompts") as server:
        yield server, began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder of Python; default: Python's own library")
    parser.add_argument("--tokens", default="500k")
    parser.add_argument("--dir", type=Path, help="where the store lies meanwhile; name a folder on a disk")
    parser.add_argument("--mornings", type=int, default=3)
    given = parser.parse_args()
    others = OtherWork()
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        store = Path(folder) / "store"
        count, seconds = read(store, real_source(Path(folder), parse_tokens(given.tokens), given.source))
        print(f"{count:,} tokens of Python read in {seconds:.0f} s", flush=True)
        with serving(store, "--no-save-prompts") as server:
            unbroken = run(server.url, question(OUTPUT))
            server.kill()
        for number in range(given.mornings):
            with morning(store) as (server, began):
                before = server.bytes_read()
                first = run(server.url, question(1))
                told = tell(number, server, first, began, server.bytes_read() - before, before)
                again = run(server.url, question(OUTPUT))
                server.kill()
            same = again.logprobs == unbroken.logprobs and len(again.logprobs) == OUTPUT
            print(
                f"{told}; next {len(again.logprobs):,} log-probabilities {'the same' if same else 'DIFFER'}", flush=True
            )
    print(f"other processes (the servers too) kept {others.cores() or 0:.2f} cores busy")


def tell(number: int, server: Server, first: Stream, began: float, read: int, before: int) -> str:
    """One morning, in a line."""
    return (
        f"morning {number + 1}: first token {first.first:.2f} s after the request and {first.times[0] - began:.2f} s "
        f"after the process began (ready after {server.ready:.2f} s); read from storage {show_bytes(before)} until it "
        f"was ready and {show_bytes(read)} for the request; found {first.found:,} of {first.prompt_tokens:,} tokens"
    )


if __name__ == "__main__":
    main()
