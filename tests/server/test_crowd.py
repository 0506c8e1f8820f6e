"""64 streams at once, of clients that read, dawdle or leave: everything is given back.

With FOVEAL_SOAK=SECONDS wave after wave comes for so long (`make soak`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from server_support import Running, serving

pytestmark = pytest.mark.slow

SOAK = float(os.environ.get("FOVEAL_SOAK", 0))
STREAMS = 64
WAVES = 3
"""Without `SOAK`."""
ENDS = (b"data: [DONE]\n\n", b'{"type":"message_stop"}\n\n', b"}\n\n")


def request(dice: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body. Some prompts begin alike, some are of their own."""
    text = dice.choice(["one beginning of many words " * 30, ""]) + f"and {dice.randrange(40)}"
    tokens = dice.choice([1, 8, 60, 400])
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": True}
    return dice.choice(
        [
            ("/v1/chat/completions", chat | {"n": dice.randrange(1, 4), "ignore_eos": True}),
            ("/v1/chat/completions", chat | {"memory": "notes", "citations": True}),
            ("/v1/completions", {"prompt": [text, "x"], "max_tokens": tokens, "stream": True, "ignore_eos": True}),
            ("/v1/messages", chat | {"model": "tiny"}),
            ("/v1/responses", {"input": text, "max_output_tokens": tokens, "stream": True, "store": False}),
        ]
    )


async def client(url: str, dice: random.Random) -> str:
    """One stream, as one of many kinds of client takes it; what became of it."""
    manner = dice.choice(["reads", "reads", "leaves", "leaves at once", "dawdles", "dawdles and leaves"])
    path, body = request(dice)
    data = json.dumps(body).encode()
    place = urlsplit(url)
    with socket.socket() as wire:
        wire.setblocking(False)
        if "dawdles" in manner:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # what it does not read the server cannot send
        await asyncio.get_running_loop().sock_connect(wire, (place.hostname, place.port))
        reader, writer = await asyncio.open_connection(sock=wire, limit=1024)
        head = f"POST {path} HTTP/1.0\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        writer.write(head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data)
        try:
            return await _taken(reader, manner, dice)
        finally:
            writer.transport.abort()


async def _taken(reader: asyncio.StreamReader, manner: str, dice: random.Random) -> str:
    if manner == "leaves at once":
        return "left"
    most = dice.randrange(1, 20_000) if "leaves" in manner else 1 << 30
    came = b""
    while len(came) < most and (piece := await reader.read(256 if "dawdles" in manner else 1 << 16)):
        came += piece
        if "dawdles" in manner:
            await asyncio.sleep(0.001)
    if len(came) >= most:
        return "left"
    status = came.split(b" ", 2)[1].decode()
    assert status in ("200", "429", "503", "529"), came[:300]
    assert status != "200" or came.endswith(ENDS), came[-300:]
    return status


def waves(running: Running, dice: random.Random) -> Counter[str]:
    """Clients, `STREAMS` of them at any time."""

    async def wave() -> Counter[str]:
        found: Counter[str] = Counter()
        end = time.monotonic() + SOAK
        left = STREAMS * WAVES

        async def stay() -> None:
            nonlocal left
            while left > 0 or time.monotonic() < end:
                left -= 1
                found[await client(running.url, dice)] += 1

        await asyncio.gather(*(stay() for _ in range(STREAMS)))
        return found

    return asyncio.run(wave())


def held(running: Running) -> dict[str, int]:
    """What the server holds when nothing is in work, and nothing is kept of earlier prompts."""
    engine, end = running.engine, time.monotonic() + 120
    while running.call(lambda: len(running.service.works)) or engine.call(lambda: engine.batch.scheduler.busy):
        assert time.monotonic() < end, "something is still in work"
        time.sleep(0.01)
    shelf = next(iter(next(iter(running.service.registry.models.values())).shelves.values()))
    while shelf.kept.make_room():
        pass
    shelf.forget("notes")

    def counted() -> dict[str, int]:
        names = [thread.name for thread in threading.enumerate() if not thread.name.startswith("foveal-http")]
        return {
            "pages": engine.call(lambda: engine.pool.live),
            "tasks": running.call(lambda: len(asyncio.all_tasks())),
            "handles": len(os.listdir("/proc/self/fd")),
            "threads": len(names),
            "places": running.service.gate.running + running.service.gate.waiting,
        }

    last: dict[str, int] = {}
    while (now := counted()) != last:  # connections close a moment after their work has ended
        assert time.monotonic() < end, f"it does not come to rest: {now}"
        last = now
        time.sleep(0.2)
    return last


def test_everything_is_given_back(tmp_path: Path) -> None:
    dice = random.Random(time.time_ns() if SOAK else 7)
    with serving(tmp_path, running=16, waiting=STREAMS, save_prompts=False, output_tokens=500) as running:
        made = httpx.post(
            f"{running.url}/v1/memories", json={"name": "notes", "text": "a = 1\nb = 2\n" * 300}, timeout=60
        )
        assert made.status_code == 201
        chat = {"messages": [{"role": "user", "content": "x"}], "memory": "notes", "max_tokens": 2}
        assert httpx.post(f"{running.url}/v1/chat/completions", json=chat, timeout=60).status_code == 200
        start = held(running)
        found = waves(running, dice)
        end = held(running)
        http_threads = [thread for thread in threading.enumerate() if thread.name.startswith("foveal-http")]
        assert len(http_threads) <= 16 + 16
        assert found["200"] > STREAMS and found["left"] > STREAMS / 2, found
        assert all(end[what] <= start[what] for what in start), (start, end, found)
        assert end["pages"] == 0 and end["places"] == 0
        after = httpx.post(f"{running.url}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=60)
        assert after.status_code == 200
