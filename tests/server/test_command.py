"""`foveal serve`, `foveal why` and `foveal mcp` as processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_support import write_model
from click.testing import CliRunner
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from server_support import served

from foveal.cli.main import app
from foveal.server.auth import Keys


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", 4)


def test_it_serves_and_tells_why_and_ends_in_order(model: Path, tmp_path: Path) -> None:
    with served(f"tiny={model}", "--store", str(tmp_path / "store"), "--alias", "claude-*=tiny", "--log-requests") as (
        url,
        process,
    ):
        body = {"model": "claude-x", "messages": [{"role": "user", "content": "secret words"}], "max_tokens": 3}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        told = CliRunner().invoke(app, ["why", "--server", url, "--json"])
        assert json.loads(told.stdout)["prompts"][0]["reason"] == "new", told.output
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        line = json.loads(log.splitlines()[0])
        assert line["path"] == "/v1/chat/completions" and line["status"] == 200 and "secret" not in log
        assert process.returncode == 128 + signal.SIGTERM


def test_what_was_said_outlives_a_kill(model: Path, tmp_path: Path) -> None:
    arguments = (f"tiny={model}", "--store", str(tmp_path / "store"))
    with served(*arguments) as (url, process):
        made = httpx.post(f"{url}/v1/responses", json={"input": "x", "max_output_tokens": 3}, timeout=60).json()["id"]
        assert httpx.post(f"{url}/v1/memories", json={"name": "m", "text": "hello\n"}, timeout=60).status_code == 201
        process.kill()
        process.wait()
    with served(*arguments) as (url, _):
        assert httpx.get(f"{url}/v1/responses/{made}", timeout=60).json()["id"] == made
        assert httpx.get(f"{url}/v1/memories/m", timeout=60).json()["complete"]


def test_look_starts_a_server_and_tells_where_the_page_is(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "foveal", "look", "--no-browser", "--model", str(model)]
    with subprocess.Popen(
        [*command, "--store", str(tmp_path / "store")], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "the page is at" in line)
            page = httpx.get(line.split()[-1], headers={"accept": "text/html"}, timeout=60)
            assert "<title>Foveal</title>" in page.text and page.url.host == "127.0.0.1"
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "there is no store at"),
        (("--server", "127.0.0.1:8000"), "is no address of a server"),
        (("--server", "http://127.0.0.1:9"), "no server answers there"),
    ],
)
def test_what_cannot_be_looked_at_is_told(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    given = ["look", "nope", "--no-browser", "--store", str(tmp_path / "store"), *arguments]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1 and words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "there is no key"),
        (("--alias", "a=b"), "which is not served"),
        (("--alias", "a"), "--alias NAME=MODEL"),
        (("--root", "/nowhere"), "is no folder"),
        (("--price", "nano=1"), "--price MODEL=IN,CACHED,OUT"),
        (("--keys", "/nowhere"), "cannot read the keys"),
        (("--price", "nano=nan,0,0"), "the price of nano is nan"),
        (("--price", "nano=0,0,-1"), "the price of nano is -1"),
        (("--patience", "nan"), "the patience is nan"),
        (("--patience", "-1"), "patience is -1"),
        (("--time-limit", "nan"), "time limit is nan"),
        (("--time-limit", "-1"), "time limit is -1"),
        (("--temperature", "nan"), "'temperature' is nan"),
        (("--top-p", "2"), "'top_p' is 2"),
    ],
)
def test_what_cannot_be_served_is_told_at_once(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--store", str(tmp_path / "store"), *arguments])
    assert result.exit_code == 1 and words in result.stderr


def test_a_new_key_works_in_the_file_of_keys(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["serve", "--new-key", "alice"]).stdout
    first, _, lines = printed.partition("\n")
    (tmp_path / "keys.toml").write_text(lines)
    found = Keys.read(tmp_path / "keys.toml").of(first.split(": ")[1])
    assert found is not None and found.name == found.tenant == "alice"


def test_a_server_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["why", "--server", "http://127.0.0.1:9"])
    assert result.exit_code == 1 and "cannot be asked: no server answers there; `foveal serve`" in result.stderr


def test_memories_over_standard_input(model: Path, tmp_path: Path) -> None:
    command = ["-m", "foveal", "mcp", "--model", str(model), "--store", str(tmp_path / "store")]

    async def work() -> None:
        server = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
        async with Client(stdio_client(server)) as client:
            assert len((await client.list_tools()).tools) == 8
            assert (await client.call_tool("memories", {})).structured_content == {"memories": []}

    asyncio.run(work())


def line(id: int, method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}) + "\n"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, "stdin", "stdout"])
def test_an_end_in_the_middle_of_a_call_over_standard_input(model: Path, tmp_path: Path, end: Any) -> None:
    """The thread that waits for the next line must not hold it up."""
    options = ["--model", str(model), "--store", str(tmp_path / "store")]
    (tmp_path / "a.py").write_text("def parse_config(x):\n    return x + 41\n" * 30)
    read = CliRunner().invoke(app, ["read", str(tmp_path / "a.py"), "--name", "p", *options])
    assert read.exit_code == 0, read.output
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-m", "foveal", "mcp", *options], text=True, **pipes)
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        process.stdin.write(line(0, "initialize", **about))
        arguments = {"memory": "p", "cue": "def", "max_tokens": 4096}
        process.stdin.write(line(1, "tools/call", name="recall", arguments=arguments) + line(2, "ping"))
        process.stdin.flush()
        assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == [0, 2]
        if isinstance(end, signal.Signals):
            process.send_signal(end)
        else:
            getattr(process, end).close()
        assert process.wait(timeout=60) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(end, 0)
        assert process.stderr.read() == ""
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
