"""MCP, asked as no client of good manners asks."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_support import write_model
from server_support import Running, key, serving

pytestmark = pytest.mark.slow

VERSIONS = ("2025-11-25", "2026-07-28")
SOURCE = "def parse_config(x):\n    return x + 41\n" * 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), 4)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "project"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text(SOURCE)
    return folder


@pytest.fixture
def server(tmp_path: Path, model: Path, project: Path) -> Iterator[Running]:
    with serving(tmp_path, model=model, roots=(project.parent,)) as running:
        made = httpx.post(f"{running.url}/v1/memories", json={"name": "p", "path": "project"}, timeout=60)
        assert made.status_code == 201, made.text
        yield running


def request(version: str, method: str, params: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Headers and body of a call."""
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": version,
    }
    if version >= "2026":
        headers |= {"mcp-method": method} | ({"mcp-name": params["name"]} if "name" in params else {})
        prefix = "io.modelcontextprotocol"
        about: dict[str, Any] = {f"{prefix}/protocolVersion": version, f"{prefix}/clientCapabilities": {}}
        params = params | {"_meta": about | {f"{prefix}/clientInfo": {"name": "test", "version": "1"}}}
    return headers, json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def call(running: Running, tool: str, version: str = VERSIONS[0], **arguments: Any) -> dict[str, Any]:
    """What a tool answers."""
    headers, body = request(version, "tools/call", {"name": tool, "arguments": arguments})
    answer = httpx.post(f"{running.url}/mcp", content=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["result"]
    return found


def failure(running: Running, tool: str, **arguments: Any) -> str:
    """What it says when it will not."""
    told = call(running, tool, **arguments)
    assert told["isError"], told
    return str(told["content"][0]["text"])


def settled(running: Running) -> bool:
    """Whether nothing is in work, now or within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if running.call(lambda: not running.service.gate.running and not len(running.service.works)):
            return True
        time.sleep(0.01)
    return False


# ---------------------------------------------------------------------- what was asked


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        ("append", {"text": ""}, "text"),
        ("append", {"text": "x", "author": "y" * 300}, "author"),
        ("recall", {"cue": ""}, "cue"),
        ("search", {"text": ""}, "text"),
        ("ask", {"question": ""}, "question"),
        ("ask", {"question": "x" * 9000}, "question"),
    ],
)
def test_what_is_wrong_with_a_call_is_told(server: Running, tool: str, arguments: dict[str, Any], word: str) -> None:
    assert word in failure(server, tool, memory="p", **arguments).removeprefix(f"Error executing tool {tool}")


@pytest.mark.parametrize("most", [-5, 0, 5000, 1 << 80])
def test_more_than_there_may_be_is_as_much_as_there_may_be(server: Running, most: int) -> None:
    told = call(server, "recall", memory="p", cue="def parse_config", max_tokens=most)
    assert not told["isError"] and told["structuredContent"]["usage"]["completion_tokens"] <= 4096


def test_lines_have_the_numbers_of_citations(server: Running, project: Path) -> None:
    """Only a line feed ends a line: an editor, `cited_lines` and the routes count so."""
    lines = ["one \x0b\x0c\x1c\x85\u2028 line", "two\r", "three"]
    (project / "odd.txt").write_text("\n".join(lines), newline="")
    call(server, "sync", memory="p")
    found = call(server, "search", memory="p", text="three")["structuredContent"]["matches"]
    assert found == [{"path": "odd.txt", "line": 3, "text": "three"}]
    told = call(server, "read_lines", memory="p", path="odd.txt")["structuredContent"]
    route = f"{server.url}/v1/memories/p/source?path=odd.txt"
    assert [each["text"] for each in told["lines"]] == httpx.get(route, timeout=60).json()["lines"]
    assert told["all_lines"] == 3


def test_no_error_says_where_files_lie(server: Running, project: Path, tmp_path: Path) -> None:
    httpx.post(f"{server.url}/v1/memories", json={"name": "t", "text": "hello\n" * 9}, timeout=60)
    shutil.rmtree(project)
    shutil.rmtree(tmp_path / "store.server" / "texts")
    for name in ("p", "t"):
        said = failure(server, "sync", memory=name)
        said += httpx.post(f"{server.url}/v1/memories/{name}/sync", json={}, timeout=60).text
        said += httpx.get(f"{server.url}/v1/memories/{name}/changes", timeout=60).text
        assert said.count("No such file") == 3 and str(tmp_path) not in said, said


# ---------------------------------------------------------------------- how it was asked


@pytest.mark.parametrize("version", VERSIONS)
def test_a_body_that_is_too_large(tmp_path: Path, model: Path, version: str) -> None:
    headers, _ = request(version, "tools/list", {})
    with serving(tmp_path, model=model, body_bytes=10_000) as running:
        bodies: list[Any] = [b"x" * 20_000, iter([b"x" * 1000] * 20)]
        for body in bodies:
            answer = httpx.post(f"{running.url}/mcp", content=body, headers=headers, timeout=60)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "http://evil.example", "https://127.0.0.1.x"])
def test_pages_of_other_sites_are_refused_where_keys_are_asked_for_too(
    tmp_path: Path, model: Path, origin: str
) -> None:
    with serving(tmp_path, model=model, keys=(key("alice"),)) as running:
        for host in ("[", "", "localhost"):
            headers = {"origin": origin, "host": host, "x-api-key": "alice"}
            assert httpx.post(f"{running.url}/mcp", json={}, headers=headers, timeout=60).status_code == 403


def test_a_key_without_models_learns_the_name_of_none(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, model=model, keys=(key("alice", models=("other",)),)) as running:
        headers, body = request(VERSIONS[0], "tools/call", {"name": "memories", "arguments": {}})
        secret = {"x-api-key": "alice"}
        answers = [
            httpx.post(f"{running.url}/mcp", content=body, headers=headers | secret, timeout=60),
            httpx.get(f"{running.url}/v1/memories", headers=secret, timeout=60),
            httpx.get(f"{running.url}/v1/why", headers=secret, timeout=60),
            httpx.post(f"{running.url}/v1/completions", json={"prompt": "x"}, headers=secret, timeout=60),
        ]
        assert all("tiny" not in answer.text and "no model" in answer.text for answer in answers)


# ---------------------------------------------------------------------- who leaves, and the end


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("recall", {"cue": "def", "max_tokens": 4096}),
        ("ask", {"question": "parse_config return", "max_tokens": 4096}),
        ("sync", {}),
    ],
)
def test_a_client_that_leaves_ends_its_call(
    server: Running, project: Path, version: str, tool: str, arguments: dict[str, Any]
) -> None:
    (project / "long.txt").write_text("".join(f"line {number}\n" for number in range(1500)))
    batch = server.engine.batch
    call(server, "search", memory="p", text="41")
    if tool == "recall":
        call(server, tool, memory="p", **arguments)
    whole, live = batch.ran.steps, server.engine.pool.live
    headers, body = request(version, "tools/call", {"name": tool, "arguments": {"memory": "p"} | arguments})
    place = server.url.removeprefix("http://")
    host, port = place.split(":")
    with socket.create_connection((host, int(port))) as wire:
        lines = ["POST /mcp HTTP/1.1", f"host: {place}", *(f"{name}: {value}" for name, value in headers.items())]
        wire.sendall("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)
        while not server.call(lambda: server.service.gate.running):
            time.sleep(0.001)
    assert settled(server)
    assert tool != "recall" or batch.ran.steps - whole < whole / 2, "it went on to the end"
    assert server.engine.pool.live <= live


def test_a_call_that_is_cancelled_over_stdio_gives_everything_back(server: Running) -> None:
    """The library cancels in a way that comes again at every wait."""
    import anyio
    from mcp import Client

    from foveal.server.mcp.tools import make_tools

    call(server, "search", memory="p", text="41")
    live = server.engine.pool.live

    async def work() -> None:
        async with Client(make_tools(server.service)) as client:
            for tool, arguments in (
                ("recall", {"cue": "def", "max_tokens": 4096}),
                ("ask", {"question": "parse_config", "max_tokens": 4096}),
            ):
                async with anyio.create_task_group() as group:
                    group.start_soon(client.call_tool, tool, {"memory": "p"} | arguments)
                    while not server.service.gate.running:
                        await asyncio.sleep(0.001)
                    group.cancel_scope.cancel()
                while server.service.gate.running:
                    await asyncio.sleep(0.001)

    server.run(work())
    assert settled(server) and server.engine.pool.live <= live


@pytest.mark.parametrize("version", VERSIONS)
def test_nobody_holds_up_the_end_by_listening(tmp_path: Path, model: Path, version: str) -> None:
    headers, body = request(version, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    with serving(tmp_path, model=model) as running:
        with httpx.stream("GET", f"{running.url}/mcp", headers=headers, timeout=60) as answer:
            assert answer.status_code == 405
        with httpx.stream("POST", f"{running.url}/mcp", content=body, headers=headers, timeout=60) as answer:
            assert answer.headers["content-type"].startswith("application/json") and b"error" in answer.read()


def test_a_client_that_leaves_ends_its_recall(server: Running) -> None:
    """The route too: the thread must not work on a memory that was given back."""
    body = {"cue": "def", "max_tokens": 4096}
    httpx.post(f"{server.url}/v1/memories/p/recall", json=body, timeout=60)
    whole = server.engine.batch.ran.steps
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("POST", "/v1/memories/p/recall", json.dumps(body), {"content-type": "application/json"})
    while not server.call(lambda: server.service.gate.running):
        time.sleep(0.001)
    connection.close()
    assert settled(server)
    steps = server.engine.batch.ran.steps
    assert steps - whole < whole / 2, "it went on to the end"
    time.sleep(0.1)
    assert server.engine.batch.ran.steps == steps
