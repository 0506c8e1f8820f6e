"""A server that is killed in the middle of everything: what it had acknowledged is there after the next start.

With FOVEAL_SOAK=SECONDS it is killed again and again for so long (`make soak`).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_support import write_model
from server_support import served

pytestmark = pytest.mark.slow

SOAK = float(os.environ.get("FOVEAL_SOAK", 0))
KILLS = 2
"""Without `SOAK`."""


@dataclass
class Acknowledged:
    """What the server has said is done."""

    memories: dict[str, int] = field(default_factory=dict)
    """Name -> tokens."""
    responses: dict[str, str] = field(default_factory=dict)
    """Id -> text."""
    deleted: set[str] = field(default_factory=set)
    appended: list[str] = field(default_factory=list)
    """What was added to the memory ``shared``, in order."""
    in_doubt: set[str] = field(default_factory=set)
    """Names whose last request had no answer."""


class Writers:
    """Threads that keep a server busy and note what it acknowledges, until it does not answer any more."""

    def __init__(self, url: str, known: Acknowledged, number: int) -> None:
        self.url, self.known, self.number = url, known, number
        self.done = threading.Semaphore(0)
        works: tuple[Callable[[httpx.Client, int], None], ...] = (self.memory, self.response, self.append, self.stream)
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[httpx.Client, int], None]) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            for turn in range(100_000):
                try:
                    work(http, turn)
                except httpx.TransportError:  # it was killed
                    return
                self.done.release()

    def memory(self, http: httpx.Client, turn: int) -> None:
        name = f"m-{self.number}-{turn}"
        made = http.post("/v1/memories", json={"name": name, "text": f"{name} = {turn}\n" * (1 + turn % 200)})
        assert made.status_code == 201, made.text
        self.known.memories[name] = made.json()["tokens"]
        if turn % 3 == 2:
            gone = f"m-{self.number}-{turn - 1}"
            self.known.in_doubt.add(gone)
            assert http.delete(f"/v1/memories/{gone}").status_code == 200
            self.known.in_doubt.discard(gone)
            self.known.deleted.add(gone)
            del self.known.memories[gone]

    def response(self, http: httpx.Client, turn: int) -> None:
        body: dict[str, Any] = {"input": f"question {self.number}-{turn}", "max_output_tokens": 3, "seed": turn}
        if turn % 2 and self.known.responses:
            body["previous_response_id"] = next(reversed(self.known.responses))
        made = http.post("/v1/responses", json=body)
        assert made.status_code == 200, made.text
        self.known.responses[made.json()["id"]] = str(made.json()["output"])

    def append(self, http: httpx.Client, turn: int) -> None:
        text = f"line {self.number}-{turn}\n"
        made = http.post("/v1/memories/shared/append", json={"text": text})
        assert made.status_code == 200, made.text
        self.known.appended.append(text)

    def stream(self, http: httpx.Client, turn: int) -> None:
        messages = [{"role": "user", "content": f"talk for long {turn} " * 60}]
        body = {"messages": messages, "max_tokens": 2000, "stream": True, "ignore_eos": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for _ in answer.iter_bytes():
                pass

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def check(url: str, known: Acknowledged) -> None:
    """All that was acknowledged is there, and nothing that was deleted."""
    with httpx.Client(base_url=url, timeout=60) as http:
        there = {memory["name"]: memory for memory in http.get("/v1/memories").json()["data"]}
        for name, tokens in known.memories.items():
            if name not in known.in_doubt:
                assert there[name]["tokens"] == tokens and there[name]["problem"] is None
        assert not known.deleted & set(there)
        for id_, output in known.responses.items():
            assert str(http.get(f"/v1/responses/{id_}").json()["output"]) == output
        if known.responses:
            last = {"input": "go on", "previous_response_id": next(reversed(known.responses)), "max_output_tokens": 2}
            assert http.post("/v1/responses", json=last).status_code == 200
        for text in (known.appended or [""])[-3:]:
            if text:
                found = http.post("/v1/memories/shared/search", json={"text": text.strip(), "limit": 5}).json()
                assert found["matches"], text
        for name in random.Random(1).sample(sorted(known.memories), min(3, len(known.memories))):
            if name not in known.in_doubt:
                asked = {"messages": [{"role": "user", "content": "x"}], "memory": name, "max_tokens": 2}
                assert http.post("/v1/chat/completions", json=asked).status_code == 200


def test_what_was_acknowledged_outlives_kills(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny", 4)
    arguments = (f"tiny={model}", "--store", str(tmp_path / "store"), "--threads", "1")
    known, end, number = Acknowledged(), time.monotonic() + SOAK, 0
    dice = random.Random(time.time_ns() if SOAK else 3)
    while number < KILLS or time.monotonic() < end:
        with served(*arguments) as (url, process):
            if number == 0:
                made = httpx.post(f"{url}/v1/memories", json={"name": "shared", "text": "begin\n"}, timeout=60)
                assert made.status_code == 201
            else:
                check(url, known)
            writers = Writers(url, known, number)
            for _ in range(dice.randrange(10, 60)):
                assert writers.done.acquire(timeout=60), "the server does not answer"
            process.kill()
            process.wait()
            writers.join()
        number += 1
    with served(*arguments) as (url, _):
        check(url, known)
    assert len(known.memories) > 2 and len(known.responses) > 2 and known.appended
