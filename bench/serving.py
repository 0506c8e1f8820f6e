"""What a server adds to the engine, and what it spares: the figures of docs/serving.md.

    python bench/serving.py                      all of them
    python bench/serving.py --only again http    some of them

again: the same prompt of 20,000 tokens a second time.   http: one stream against `Engine` in this process, in turns.
beside: a stream while a long source is read into a memory.   start: from the command to ready.

Each starts servers of its own, of the nano. Run it on an idle machine; it says what others used meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from streams import Server, completion, percentiles, real_source, run, said, serving

from foveal import Engine
from foveal.batch.scheduler import LEAST_BUDGET
from foveal.measure import OtherWork
from foveal.plan import parse_tokens

PROMPT = 20_000
GREEDY: dict[str, Any] = {"model": "nano", "temperature": 0, "ignore_eos": True}


def ids(count: int, seed: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(100, 4000) for _ in range(count)]


def again(folder: Path) -> None:
    """The same prompt again, and what a decoding step takes there."""
    with serving(folder / "store") as server:
        run(server.url, GREEDY | {"prompt": ids(600, 0), "max_tokens": 4})
        body = GREEDY | {"prompt": ids(PROMPT, 1)}
        cold = run(server.url, body | {"max_tokens": 1})
        firsts, steps = [], []
        for _ in range(20):
            hit = run(server.url, body | {"max_tokens": 64})
            firsts.append(hit.first)
            steps.append(1 / hit.rate)
    step, first = statistics.median(steps), statistics.median(firsts)
    share = hit.found / hit.prompt_tokens
    print(f"again: first time {cold.first:.2f} s, {cold.found:,} found; again {share:.2%} found")
    print(f"  first token after {1000 * first:.1f} ms (p90 {1000 * percentiles(firsts, 0.9)[0]:.1f})")
    most = 2 * step + 0.02
    print(f"  a decoding step takes {1000 * step:.1f} ms, so {1000 * most:.1f} ms are asked at most", flush=True)


def http(folder: Path) -> None:
    """One stream over HTTP and in this process, in turns."""
    prompt, count, over, here = ids(512, 2), 800, [], []
    with Engine.open("nano") as engine, serving(folder / "store") as server:
        for turn in range(9):
            stream = run(server.url, GREEDY | {"prompt": prompt, "max_tokens": count})
            times = [event.at for event in engine.stream(prompt, max_tokens=count, ignore_eos=True) if event.sampled]
            if turn:  # the first warms both up
                over.append(stream.rate)
                here.append((len(times) - 1) / (times[-1] - times[0]))
    ratios = [one / other for one, other in zip(over, here, strict=True)]
    print(f"http: {statistics.median(over):,.0f} tokens/s over HTTP, {statistics.median(here):,.0f} in the process")
    print(
        f"  ratio of each pair: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}",
        flush=True,
    )


def beside(folder: Path, tokens: int) -> None:
    """A stream's gaps while a source is read."""
    source = real_source(folder, tokens)
    with serving(folder / "store", "--root", str(source), "--max-output", "1M", "--context", "1M") as server:
        alone = run(server.url, GREEDY | {"prompt": ids(512, 3), "max_tokens": 200})
        streams, reading = asyncio.run(_beside(server, source))
    gaps = [gap for stream in streams for gap in stream.gaps]
    p99 = percentiles(gaps, 0.99)[0]
    print(said("beside: gaps alone", alone.gaps))
    print(said(f"  gaps while {reading:,} tokens were read", gaps))
    print(f"  p99 is {p99 / LEAST_BUDGET:.2f} of the budget of {1000 * LEAST_BUDGET:.0f} ms", flush=True)


async def _beside(server: Server, source: Path) -> tuple[list[Any], int]:
    """Streams, one after the other, until the source is read."""
    read = [0]
    reading = asyncio.create_task(asyncio.to_thread(_read, server.url, source, read))
    while not read[0] and not reading.done():
        await asyncio.sleep(0.05)
    streams = []
    while not reading.done():
        streams.append(await completion(server.url, GREEDY | {"prompt": ids(512, 3), "max_tokens": 400}))
    await reading
    return streams, read[0]


def _read(url: str, source: Path, read: list[int]) -> None:
    """Have the server read the source into a memory."""
    body = {"name": "long", "path": str(source), "stream": True}
    request = Request(f"{url}/v1/memories", json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                if event["type"] == "progress" and event["exact"]:
                    read[0] = event["tokens_done"]


def start(folder: Path) -> None:
    """From the command to ready, several times."""
    seconds = []
    for number in range(6):
        with serving(folder / f"store-{number}") as server:
            seconds.append(server.ready)
    rest = f"then {min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}"
    print(f"start: ready after {statistics.median(seconds[1:]):.2f} s (first {seconds[0]:.2f}, {rest})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["again", "http", "beside", "start"])
    parser.add_argument("--tokens", default="1000000", help="what is read beside a stream")
    given = parser.parse_args()
    parts: dict[str, Callable[[Path], None]] = {
        "again": again,
        "http": http,
        "beside": lambda folder: beside(folder, parse_tokens(given.tokens)),
        "start": start,
    }
    for name, part in parts.items():
        if given.only is None or name in given.only:
            others = OtherWork()
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder))
            print(f"  ({time.strftime('%H:%M')}; others kept {others.cores() or 0:.2f} cores busy)")


if __name__ == "__main__":
    main()
