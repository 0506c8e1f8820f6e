"""Requests that come at a server whether or not it keeps up (open loop): how long they wait, and what comes out.

    python bench/load.py --rate 2 --seconds 60                       a server of its own, the nano
    python bench/load.py --url http://127.0.0.1:8000 --model v4 --rate 0.5 --prompt 4k --output 256 --shared 0.8

Requests come at random times (Poisson). Each prompt is random tokens: the first `--shared` share is one of `--groups`
beginnings that many have in common, the rest is its own. Any server with OpenAI's completions will do that takes ids.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from streams import Stream, completion, percentiles, said, serving

from foveal.measure import OtherWork
from foveal.plan import parse_tokens


def arrivals(rate: float, seconds: float, dice: random.Random) -> list[float]:
    """Times from 0 on, `rate` a second."""
    times, now = [], dice.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += dice.expovariate(rate)
    return times


def prompts(count: int, tokens: int, shared: float, groups: int, dice: random.Random) -> list[list[int]]:
    """Random ids; the nano's and most vocabularies have all of them."""
    beginnings = [[dice.randrange(100, 4000) for _ in range(int(tokens * shared))] for _ in range(groups)]
    made = []
    for _ in range(count):
        beginning = dice.choice(beginnings)
        made.append([*beginning, *(dice.randrange(100, 4000) for _ in range(tokens - len(beginning)))])
    return made


async def load(url: str, bodies: list[dict[str, Any]], times: list[float], key: str | None) -> list[Stream]:
    """Send each body at its time, whatever became of those before."""
    began = time.perf_counter()

    async def one(body: dict[str, Any], at: float) -> Stream:
        await asyncio.sleep(at - (time.perf_counter() - began))
        return await completion(url, body, key)

    return await asyncio.gather(*(one(body, at) for body, at in zip(bodies, times, strict=True)))


def report(streams: list[Stream], seconds: float) -> None:
    """Print what came of them."""
    good = [stream for stream in streams if not stream.error and stream.times]
    errors = Counter(stream.error.split(":")[0] for stream in streams if stream.error)
    print(f"{len(streams)} requests, {len(good)} answered; errors: {dict(errors) or 'none'}")
    print(said("time to first token", [stream.first for stream in good]))
    print(said("between two events", [gap for stream in good for gap in stream.gaps]))
    read, found = sum(s.prompt_tokens for s in good), sum(s.found for s in good)
    written = sum(s.tokens for s in good)
    print(f"tokens of prompts {read:,}, found {found / max(read, 1):.1%}; written {written:,}")
    print(
        f"in all {sum(s.tokens for s in good) / seconds:,.0f} tokens written a second, {read / seconds:,.0f} of prompts"
    )
    slowest = percentiles([stream.ended - stream.began for stream in good], 0.5, 0.99)
    print(f"whole answers: p50 {slowest[0]:.2f} s, p99 {slowest[1]:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server; default: one of its own")
    parser.add_argument("--key", help="its key")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--prompt", default="1k", help="tokens of a prompt")
    parser.add_argument("--output", default="64", help="tokens of an answer")
    parser.add_argument("--shared", type=float, default=0.5, help="share of a prompt that others begin with, too")
    parser.add_argument("--groups", type=int, default=4, help="beginnings that there are")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    dice = random.Random(given.seed)
    times = arrivals(given.rate, given.seconds, dice)
    texts = prompts(len(times), parse_tokens(given.prompt), given.shared, given.groups, dice)
    common = {"model": given.model, "max_tokens": parse_tokens(given.output), "ignore_eos": True, "temperature": 0}
    bodies = [common | {"prompt": text} for text in texts]
    with contextlib.ExitStack() as stack:
        url = given.url
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = stack.enter_context(serving(Path(folder) / "store")).url
        others, began = OtherWork(), time.perf_counter()
        streams = asyncio.run(load(url, bodies, times, given.key))
        report(streams, time.perf_counter() - began)
        if given.url is not None:
            print(f"other processes (the server too, if it is here) kept {others.cores() or 0:.2f} cores busy")


if __name__ == "__main__":
    main()
