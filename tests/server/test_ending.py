"""A second Ctrl-C ends a server at once, in the same order: clients are told, and what is kept is saved."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Running, serving

from foveal.memory import list_memories

pytestmark = pytest.mark.slow

SAID = "the server is being stopped; try again"
PROMPT = [(7 * n) % 4000 + 50 for n in range(700)]
MESSAGES = [{"role": "user", "content": "hello"}]
ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": (
        {"messages": MESSAGES, "stream": True},
        'data: {"error":{"message":"' + SAID,
    ),
    "/v1/completions": ({"prompt": PROMPT, "stream": True}, 'data: {"error":{"message":"' + SAID),
    "/v1/responses": (
        {"input": "hello", "stream": True, "max_output_tokens": 50_000},
        "event: response.failed",
    ),
    "/v1/messages": ({"messages": MESSAGES, "stream": True}, "event: error"),
    "/v1/chat/completions?": ({"messages": MESSAGES}, SAID),
    "/mcp": (
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "recall", "arguments": {"memory": "m", "cue": "def", "max_tokens": 4096}},
        },
        SAID,
    ),
}


def test_a_second_interrupt_ends_it_in_order(tmp_path: Path) -> None:
    headers = {"accept": "application/json, text/event-stream"}

    def ask(running: Running, path: str) -> str:
        settings = {"model": "tiny", "max_tokens": 50_000, "ignore_eos": True} if path != "/mcp" else {}
        return httpx.post(f"{running.url}{path}", json=settings | ASKED[path][0], headers=headers, timeout=600).text

    with ThreadPoolExecutor(len(ASKED)) as threads:
        with serving(tmp_path, drain_seconds=1e6) as running:
            made = {"name": "m", "text": "def f():\n    return 1\n" * 40}
            httpx.post(f"{running.url}/v1/memories", json=made, timeout=60)
            asked = {path: threads.submit(ask, running, path) for path in ASKED}
            while running.call(lambda: running.service.gate.running) < len(ASKED) and not asked["/mcp"].done():
                time.sleep(0.001)
            running.interrupt()
            while not running.service.gate.closed:
                time.sleep(0.001)
            running.interrupt()
        for path, answer in asked.items():
            told = answer.result()
            assert ASKED[path][1] in told or (path == "/mcp" and "finish_reason" in told), path  # it ends by itself
    assert any(info.name.startswith("prompt-") for info in list_memories(tmp_path / "store"))
