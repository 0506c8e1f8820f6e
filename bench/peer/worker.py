"""The protocol between `bench/peers.py` and the process of one program: a JSON object a line, both ways.

Only the standard library is imported, since each program runs in an environment of its own.

``{"do": "prepare", "depth": t, "jump": bool}`` brings a context to 512 tokens before t and keeps it.
``{"do": "measure", "depth": t, "decode": n}`` reads those 512 tokens and then chooses n tokens, greedily, one after the
other; what was kept stays as it was.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

CHUNK = 512
WARM_UP = 4
"""Steps before those that count."""


@dataclass
class Timing:
    """Seconds of reading the chunk, and of each step that counts."""

    read: float = 0.0
    steps: list[float] = field(default_factory=list)


class Peer(Protocol):
    """One program with one model open."""

    def prepare(self, depth: int, jump: bool) -> None:
        """Bring a context to `CHUNK` tokens before `depth`, reading them or (`jump`) making them up."""
        ...

    def measure(self, depth: int, decode: int) -> Timing:
        """Read the last `CHUNK` tokens before `depth`, and choose `decode` tokens after it."""
        ...

    def describe(self) -> dict[str, Any]:
        """Versions and formats, for the record."""
        ...


def text(vocabulary: int, start: int, count: int) -> list[int]:
    """The tokens that every program reads at the positions from `start` on."""
    made: list[int] = []
    for block in range(start // 4096, (start + count - 1) // 4096 + 1):
        source = random.Random(block)
        made += [source.randrange(2, vocabulary) for _ in range(4096)]
    offset = start - start // 4096 * 4096
    return made[offset : offset + count]


def time_steps(step: Callable[[], None], count: int) -> list[float]:
    """Seconds of each of `count` calls after `WARM_UP` others."""
    for _ in range(WARM_UP):
        step()
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def serve(open_peer: Callable[[dict[str, Any]], Peer]) -> None:
    """Answer requests on standard input until it ends. The first line says what to open."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    peer = open_peer(json.loads(sys.stdin.readline()))
    answer(peer.describe())
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            peer.prepare(request["depth"], request["jump"])
            answer({})
        else:
            answer(_measured(peer, request["depth"], request["decode"]))


def _measured(peer: Peer, depth: int, decode: int) -> dict[str, Any]:
    before = _cpu_seconds()
    timing = peer.measure(depth, decode)
    return {
        "prefill_tok_s": CHUNK / timing.read,
        "decode_tok_s": len(timing.steps) / sum(timing.steps),
        "cpu_seconds": _cpu_seconds() - before,
        "peak_bytes": _peak_bytes(),
    }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
