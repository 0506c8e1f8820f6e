"""Memories over HTTP and MCP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from server_support import Running, serving

pytestmark = pytest.mark.slow

SOURCE = "def parse_config(x):\n    return x + 41\n" * 30


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "project"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text(SOURCE)
    return folder


@pytest.fixture
def server(tmp_path: Path, project: Path) -> Iterator[Running]:
    with serving(tmp_path, roots=(project.parent,)) as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_texts_become_a_memory(http: httpx.Client) -> None:
    files = [{"path": "docs/a.md", "text": "hello world\n"}, {"path": "b.md", "text": "other\n" * 50}]
    made = http.post("/v1/memories", json={"name": "notes", "files": files})
    assert made.status_code == 201 and made.json()["complete"] and made.json()["files"] == 2
    assert http.post("/v1/memories", json={"name": "notes", "text": "x"}).status_code == 409
    assert http.post("/v1/memories", json={"name": "notes", "text": "x y z\n", "replace": True}).json()["files"] == 1
    assert [memory["name"] for memory in http.get("/v1/memories").json()["data"]] == ["notes"]
    assert http.delete("/v1/memories/notes").json()["deleted"] and http.get("/v1/memories/notes").status_code == 404


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "a\0b", ".git/config"])
def test_paths_of_texts_stay_inside(http: httpx.Client, path: str) -> None:
    assert http.post("/v1/memories", json={"name": "bad", "files": [{"path": path, "text": "x"}]}).status_code == 400


def test_uploads(http: httpx.Client) -> None:
    files = [("files", ("q/a.txt", b"hey\n" * 9)), ("files", ("b.txt", b"ho\n"))]
    assert http.post("/v1/memories/up/upload", files=files).json()["files"] == 2


def test_names_stay_inside(http: httpx.Client, server: Running) -> None:
    http.post("/v1/memories", json={"name": "notes", "text": "hello\n"})
    for name in ("%2e%2e", "%2e", ".hidden", "a%20b"):
        for path in (f"/v1/memories/{name}/upload?replace=true", f"/v1/memories/{name}/import"):
            assert http.post(path, files=[("files", ("b.txt", b"ho\n"))]).status_code in (400, 404, 405)
        assert http.delete(f"/v1/memories/{name}").status_code in (400, 404, 405)
    assert http.post("/v1/memories", json={"name": "..", "text": "x"}).status_code == 400
    assert http.post("/v1/memories/notes/sync", json={}).json()["changes"]["changed"] == []


def test_paths_are_read_below_a_root_only(http: httpx.Client, project: Path) -> None:
    assert http.post("/v1/memories", json={"name": "p", "path": "project"}).status_code == 201
    (project / "out").symlink_to("/etc")
    for path in ("/etc", "../..", "project/../../..", "project/out"):
        assert http.post("/v1/memories", json={"name": "q", "path": path}).status_code == 403
    assert http.post("/v1/memories", json={"name": "q", "path": "nothing"}).status_code == 404


def test_progress_comes_as_events(http: httpx.Client) -> None:
    text = http.post("/v1/memories", json={"name": "p", "path": "project", "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert events[0]["type"] == "started" and events[-1]["type"] == "done"
    assert events[-1]["memory"]["tokens"] == events[-1]["memory"]["source_tokens"]


def test_a_memory_follows_its_files(http: httpx.Client, project: Path) -> None:
    http.post("/v1/memories", json={"name": "p", "path": "project"})
    (project / "a.py").write_text(SOURCE.replace("41", "43"))
    assert http.post("/v1/memories/p/sync", json={}).json()["changes"]["changed"] == ["a.py"]
    found = http.post("/v1/memories/p/search", json={"text": "43", "limit": 2}).json()
    assert [match["line"] for match in found["matches"]] == [2, 4] and not found["complete"]


def test_shared_contexts_grow_by_compare_and_set(http: httpx.Client) -> None:
    http.post("/v1/memories", json={"name": "plan", "text": "what we know\n"})
    head = http.get("/v1/memories/plan/head").json()["head"]
    for wait in ("nan", "inf", "-1", "soon"):
        assert http.get("/v1/memories/plan/head", params={"after": head, "wait": wait}).status_code == 400, wait
    grown = http.post("/v1/memories/plan/append", json={"text": "more\n", "author": "scout", "expected_head": head})
    late = http.post("/v1/memories/plan/append", json={"text": "late\n", "expected_head": head})
    assert late.status_code == 409 and late.json()["error"]["head"] == grown.json()["head"]
    seen = http.get("/v1/memories/plan/head", params={"after": head, "wait": 30}).json()["head"]
    assert seen == grown.json()["head"]
    assert http.post("/v1/memories/plan/append", json={"text": "wherever it is\n"}).status_code == 200


def test_forks_exports_and_imports(http: httpx.Client) -> None:
    http.post("/v1/memories", json={"name": "p", "path": "project"})
    assert http.post("/v1/memories/p/fork", json={"name": "f", "at": 5}).json()["tokens"] == 5
    assert http.post("/v1/memories/p/fork", json={"name": "f"}).status_code == 409
    moved = http.get("/v1/memories/p/export").content
    assert http.post("/v1/memories/copy/import", content=moved).json()["imported"]
    assert http.post("/v1/memories/bad/import", content=moved[:-9]).status_code == 400
    assert http.get("/v1/memories/bad").status_code == 404


@pytest.mark.parametrize("way", [{"model": "tiny@p"}, {"model": "tiny", "memory": "p"}])
def test_a_chat_begins_with_a_memory_and_cites_it(http: httpx.Client, server: Running, project: Path, way: Any) -> None:
    tokens = http.post("/v1/memories", json={"name": "p", "path": "project"}).json()["tokens"]
    body = way | {"messages": [{"role": "user", "content": "what is it?"}], "max_tokens": 6, "citations": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= tokens
    (cited, *_) = answer["choices"][0]["message"]["citations"]
    assert cited["path"] == "a.py" and cited["stale"] is False and 1 <= cited["first_line"] <= cited["last_line"] <= 60
    (project / "a.py").write_text(SOURCE + "# new\n")
    streamed = httpx.post(f"{server.url}/v1/chat/completions", json=body | {"stream": True}, timeout=60).text
    assert '"stale":true' in streamed and cited["sha256"] in streamed


def test_a_memory_that_is_not_there(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for way in ({"model": "tiny@nope"}, {"memory": "nope"}):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=way | body, timeout=60)
        assert answer.status_code == 404 and answer.json()["error"]["message"] == "there is no memory 'nope'"


def test_agents_use_memories_as_tools(http: httpx.Client, server: Running) -> None:
    http.post("/v1/memories", json={"name": "p", "path": "project"})

    async def work() -> None:
        async with Client(f"{server.url}/mcp") as client:
            tools = (await client.list_tools()).tools
            names = {tool.name for tool in tools}
            assert not [tool.name for tool in tools if "\n" in (tool.description or "\n")]
            assert names == {"memories", "search", "recall", "read_lines", "ask", "fork", "append", "sync"}
            for name, arguments, key in (
                ("memories", {}, "memories"),
                ("search", {"memory": "p", "text": "41"}, "matches"),
                ("recall", {"memory": "p", "cue": "def parse", "max_tokens": 4}, "citations"),
                ("read_lines", {"memory": "p", "path": "a.py", "first_line": 2, "last_line": 3}, "lines"),
                ("ask", {"memory": "p", "question": "what?", "max_tokens": 4}, "citations"),
                ("fork", {"memory": "p", "name": "f"}, "forked_at"),
                ("append", {"memory": "f", "text": "more\n"}, "head"),
                ("sync", {"memory": "p"}, "changes"),
            ):
                called = await client.call_tool(name, arguments)
                assert not called.is_error and key in (called.structured_content or {}), (name, called)
            for arguments in ({"memory": "nope"}, {}):
                failed = await client.call_tool("sync", arguments)
                assert failed.is_error

    asyncio.run(work())


def test_completions_name_their_lines_too(http: httpx.Client) -> None:
    http.post("/v1/memories", json={"name": "p", "path": "project"})
    body = {"model": "tiny@p", "prompt": ["def parse", "return"], "n": 2, "max_tokens": 8, "ignore_eos": True}
    body |= {"temperature": 0}
    told = [http.post("/v1/completions", json=body | more).json()["choices"] for more in ({}, {"citations": True})]
    assert not any("citations" in choice for choice in told[0]) and len(told[1]) == 4
    assert all({cited["path"] for cited in choice["citations"]} == {"a.py"} for choice in told[1])
    lines = http.post("/v1/completions", json=body | {"citations": True, "stream": True}).text.split("\n")
    pieces = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    cited = {piece["index"]: piece["citations"] for piece in pieces if piece["finish_reason"]}
    assert sorted(cited) == [0, 1, 2, 3] and all(cited.values())
    assert (
        http.post("/v1/completions", json=body | {"model": "tiny", "citations": True}).json()["choices"][0]["citations"]
        == []
    )
    refused = http.post("/v1/completions", json=body | {"attention": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "attention")


def test_mcp_keeps_to_its_origin(server: Running) -> None:
    assert (
        httpx.post(f"{server.url}/mcp", json={}, headers={"origin": "https://evil.example"}, timeout=60).status_code
        == 403
    )
    assert httpx.post(f"{server.url}/mcp", json={}, timeout=60).status_code == 400


def test_a_memory_is_asked_and_the_answer_names_its_places(http: httpx.Client, project: Path) -> None:
    (project / "b.md").write_text("The keeper of the tower is Ilse.\n")
    http.post("/v1/memories", json={"name": "p", "path": "project"})
    body = {"question": "Who is the keeper of the tower?", "max_tokens": 4}
    answer = http.post("/v1/memories/p/ask", json=body).json()
    place = answer["places"][0]
    assert (place["path"], place["first_line"], place["number"]) == ("b.md", 1, 1) and place["ranks"]["search"] == 1
    assert answer["found"] and answer["with"] == "tiny" and answer["usage"]["completion_tokens"] <= 4
    lines = http.post("/v1/memories/p/ask", json=body | {"stream": True}).text.split("\n")
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert told[0] == {"type": "places", "places": [str(f"{p['path']}:1") for p in answer["places"]]}
    assert told[-1]["type"] == "done" and told[-1]["text"] == answer["text"]
    assert "".join(event["text"] for event in told[1:-1]).strip() == answer["text"]
    assert http.post("/v1/memories/p/ask", json={"question": ""}).status_code == 400
    assert http.post("/v1/memories/none/ask", json=body).status_code == 404
    assert http.post("/v1/memories/p/ask", json=body | {"with": "none"}).status_code == 404


def test_errors_do_not_say_where_the_server_keeps_its_files(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "root" / "project" / "empty").mkdir()
    asked: list[dict[str, Any]] = [
        {"name": "n", "text": ""},
        {"name": "n", "files": [{"path": "a", "text": "a\0b"}]},
        {"name": "n", "files": [{"path": "a", "text": "x"}, {"path": "a", "text": "y"}]},
        {"name": "n", "files": [{"path": "a", "text": "x"}, {"path": "a/b", "text": "y"}]},
        {"name": "n", "path": "project/empty"},
    ]
    for body in asked:
        answer = http.post("/v1/memories", json=body)
        assert answer.status_code == 400
        assert str(tmp_path) not in answer.text
    assert http.get("/v1/memories/n").status_code == 404


@pytest.mark.parametrize("body", ["[" * 100_000, '{"max_tokens": ' + "9" * 5000 + "}"])
def test_a_body_that_cannot_be_read_is_told_why(http: httpx.Client, body: str) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/memories"):
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert "nested too deeply" in answer.json()["error"]["message"]
