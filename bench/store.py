"""What saving, forking and opening cost: bytes and seconds for a memory of many tokens.

    python bench/store.py                        a million tokens in the shipped model's layout
    python bench/store.py --tokens 128k --dir /a/disk
    python bench/store.py --tails 64k            bytes and times of each tail policy

The pages are made up (`foveal.measure`), for only their number and size matter; what is done with them is what the
commands do. The store lies under `--dir` (default: the system's temporary folder) and is removed afterwards: name a
folder on the disk that is to be measured. Before an opening "from the disk" the system is asked to forget the files.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from foveal import Engine, Memory
from foveal.cache import Tail
from foveal.cli.output import show_bytes
from foveal.cli.render import results, table
from foveal.measure import OtherWork, make_image
from foveal.memory import open_store
from foveal.memory.options import SourceOptions, TailEvery, tail_distance
from foveal.memory.progress import ReadTotals
from foveal.plan import parse_tokens
from foveal.sources import SourceMap
from foveal.sources.tokenise import TokenizedDocument
from foveal.store import contexts, gc, usage
from foveal.store.records import Kind
from foveal.store.verify import verify

MORE = 1000
T = TypeVar("T")


def made_up_memory(engine: Engine, tokens: int) -> Memory:
    """A memory of `tokens` random tokens, four characters each in lines of forty."""
    sequence = engine.restore_sequence(make_image(engine.pool.layout, tokens))
    memory = Memory(engine, sequence, SourceMap(), SourceOptions("-"), ReadTotals(tokens=tokens, complete=True))
    _note(memory, "made-up.txt", sequence.tokens)
    return memory


def add_tails(engine: Engine, memory: Memory, policy: TailEvery) -> None:
    """The tails that reading leaves: here all with the same bytes."""
    memory.tail_every = policy
    distance = tail_distance(policy, engine.pool.layout, engine.batch.scheduler.chunk)
    tail = memory.sequence.export().tail
    for position in range(distance, memory.length, distance) if distance else ():
        memory.sequence.add_tail(Tail.from_tensors(engine.pool.layout, position, tail))


def _note(memory: Memory, path: str, ids: np.ndarray) -> None:
    starts = np.arange(len(ids), dtype=np.int32) * 4
    memory.places.append(TokenizedDocument(path, ids, starts, np.arange(0, starts[-1] + 41, 40, dtype=np.int32)))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what the work returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def forget_files(folder: Path) -> None:
    """Ask the system to drop the files of `folder` from its cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(engine: Engine, tokens: int, folder: Path) -> list[tuple[str, str, str, str]]:
    """Rows of what was done, seconds, bytes of records written, bytes that the device was given."""
    rows = []
    with open_store(folder) as store:

        def written(what: str, work: Callable[[], T]) -> T:
            before, device = store.packs.written, _device_bytes()
            spent, result = timed(work)
            reached = f"{_device_bytes() - device:,}"
            rows.append((what, _seconds(spent), f"{store.packs.written - before:,}", reached))
            return result

        with made_up_memory(engine, tokens) as memory:
            add_tails(engine, memory, "auto")
            written("first save", lambda: memory.save_in(store, "base"))
            more = np.random.default_rng(1).integers(0, engine.config.vocab_size, MORE).tolist()
            engine.prefill(memory.sequence, more)
            _note(memory, "more.txt", np.array(more, dtype=np.int32))
            written(f"save after {MORE:,} more tokens", lambda: memory.save_in(store, "base"))
            written("fork on disk", lambda: contexts.fork(store, "base", "copy"))
            written("fork on disk in the middle", lambda: contexts.fork(store, "base", "half", at=tokens // 2 + 17))
            written("fork on disk near the beginning", lambda: contexts.fork(store, "base", "short", at=1001))
            spent, fork = timed(memory.fork)
            fork.free()
            rows.append(("fork in memory", _seconds(spent), "", ""))
            spent, fork = timed(partial(memory.fork, tokens // 2 + 17))
            fork.free()
            rows.append(("fork in memory in the middle", _seconds(spent), "", ""))
        for what, prepare in (("open, from the disk", lambda: forget_files(folder)), ("open, from the cache", list)):
            prepare()
            spent, opened = timed(lambda: Memory.load(engine, "base", root=store))
            opened.free()
            rows.append((what, _seconds(spent), "", ""))
        spent, report = timed(lambda: verify(store))
        assert report.sound, report.problems
        rows.append(("verify everything", _seconds(spent), "", ""))
        rows.append(("bytes by context (du)", _seconds(timed(lambda: usage.usage(store))[0]), "", ""))
        rows.append(("make the index again", _seconds(timed(store.repair)[0]), "", ""))
        for name in ("copy", "half", "short"):
            contexts.delete(store, name)
        rows.append(("delete", _seconds(timed(lambda: contexts.delete(store, "base"))[0]), "", ""))
        rows.append(("give its space back", _seconds(timed(lambda: gc.collect(store))[0]), "", ""))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows.append(("most memory held, mapped files included", show_bytes(peak * 1024), "", ""))
    return rows


def measure_tails(engine: Engine, tokens: int, folder: Path) -> list[tuple[str, ...]]:
    """Rows of a policy: tails, their bytes, seconds to open at the end, and to fork half a chunk before it (from the
    tail before, or by running the window again)."""
    rows: list[tuple[str, ...]] = []
    chunk = engine.batch.scheduler.chunk
    policies: tuple[TailEvery, ...] = ("full", "auto", 4 * chunk, "none")
    for policy in policies:
        with open_store(folder / str(policy)) as store:
            with made_up_memory(engine, tokens) as memory:
                add_tails(engine, memory, policy)
                memory.save_in(store, "base")
                count = len(memory.sequence.kept_tails) - 1 if policy != "none" else 0
            kept = store.look(lambda index: sum(entry.span for entry in index.objects.all(Kind.TAIL)))
            spent, opened = timed(lambda: Memory.load(engine, "base", root=store))
            replay, fork = timed(partial(opened.fork, tokens - chunk // 2))
            fork.free()
            opened.free()
            rows.append((str(policy), f"{count:,}", f"{kept:,}", _seconds(spent), _seconds(replay)))
    return rows


def _device_bytes() -> int:
    """Bytes that this process has had written to storage, the index and its log included (Linux)."""
    with open("/proc/self/io") as file:
        return int(next(line.split()[1] for line in file if line.startswith("write_bytes")))


def _seconds(spent: float) -> str:
    return f"{spent * 1000:,.1f} ms"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1M")
    parser.add_argument("--tails", metavar="TOKENS", help="measure tail policies at so many tokens, nothing else")
    parser.add_argument("--dir", type=Path, default=None, help="a folder on the disk to measure")
    given = parser.parse_args()
    tokens = parse_tokens(given.tails or given.tokens)
    engine = Engine.open("nano", context_length=2 * tokens + MORE)  # made-up contexts may be longer than the model's
    others = OtherWork()
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        if given.tails:
            columns: tuple[str, ...] = ("tails", "tails kept>", "bytes of them>", "open>", "go back 256 tokens>")
            rows: list[tuple[str, ...]] = measure_tails(engine, tokens, Path(folder))
        else:
            columns = ("what", "time>", "bytes written>", "of the device>")
            rows = [*measure(engine, tokens, Path(folder) / "store")]
    layout = engine.pool.layout
    title = f"{tokens:,} tokens, {layout.format}, {layout.page_bytes:,} bytes a page"
    results().print(table(*columns, title=title, rows=rows))
    print(f"other processes kept {others.cores() or 0:.2f} cores busy meanwhile")


if __name__ == "__main__":
    main()
