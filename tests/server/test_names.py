"""Names of models, of memories behind them, and what has a name but is neither."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Running, serving

from foveal.memory import list_memories

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    aliases = {"claude-*": "tiny", "vertex-*@*": "tiny", "tiny@fast": "tiny"}
    with serving(tmp_path, aliases=aliases) as running:
        httpx.post(f"{running.url}/v1/memories", json={"name": "m", "text": "hello\n" * 99}, timeout=60)
        yield running


def tokens(server: Running, model: str, **settings: Any) -> int | str:
    """Tokens of the prompt, or the refusal."""
    body = {"model": model, "prompt": [5, 6], "max_tokens": 1} | settings
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    return str(answer["error"]["message"]) if "error" in answer else int(answer["usage"]["prompt_tokens"])


def test_a_pattern_leaves_no_memory_out(server: Running) -> None:
    behind = tokens(server, "tiny@m")
    assert isinstance(behind, int) and behind > 99
    for model in ("claude-x@m", "claude-x@m[1m]", "claude-x[1m]@m", "tiny@m[1m]"):
        assert tokens(server, model) == behind, model
    assert tokens(server, "claude-x@none") == tokens(server, "tiny@none") == "there is no memory 'none'"
    assert tokens(server, "tiny@none", memory="m") == behind, "the field decides"


def test_a_name_with_an_at_sign(server: Running) -> None:
    assert [tokens(server, model) for model in ("claude-x", "tiny@fast", "vertex-y@20300101")] == [2, 2, 2]


def test_a_saved_prompt_is_no_memory(server: Running, tmp_path: Path) -> None:
    httpx.post(f"{server.url}/v1/completions", json={"prompt": [7] * 700, "max_tokens": 1}, timeout=60)
    while not (names := [each.name for each in list_memories(tmp_path / "store") if each.name.startswith("prompt-")]):
        time.sleep(0.01)
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/export", None),
        ("POST", "/append", {"text": "x"}),
        ("POST", "/sync", {}),
        ("POST", "/fork", {"name": "f"}),
        ("POST", "/recall", {"cue": "x"}),
    ):
        answer = httpx.request(method, f"{server.url}/v1/memories/{names[0]}{path}", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "memory_not_found"), path
