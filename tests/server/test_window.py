"""The page for browsers, and the routes that it looks into a memory with."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Running, key, serving

import foveal.server

pytestmark = pytest.mark.slow

SOURCE = "".join(f"line {number} says {number * 7}\n" for number in range(1, 61))
PAGE = Path(foveal.server.__file__).parent / "page"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "project"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(SOURCE)
    (folder / "sub" / "b.txt").write_text("short\n")
    return folder


@pytest.fixture
def server(tmp_path: Path, project: Path) -> Iterator[Running]:
    with serving(tmp_path, roots=(project.parent,)) as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        client.post("/v1/memories", json={"name": "p", "path": "project"})
        yield client


# ---------------------------------------------------------------------- the page


def test_browsers_get_the_page_and_others_what_is_here(http: httpx.Client) -> None:
    page = http.get("/", headers={"accept": "text/html,*/*"})
    assert "<title>Foveal</title>" in page.text and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert http.get("/").json()["name"] == "foveal"


def test_what_the_page_names_is_there_below_any_prefix(http: httpx.Client) -> None:
    names = re.findall(r'(?:src|href)="([^"]+)"', http.get("/", headers={"accept": "text/html"}).text)
    assert len(names) >= 3 and all(name.startswith("./") for name in names)
    for name in names:
        assert "immutable" in http.get(name.removeprefix(".")).headers["cache-control"]
    assert http.get("/page/nothing.js").status_code == 404
    assert http.get("/page/..%2fwindow.py").status_code == 404


def test_the_page_is_small_and_asks_nobody_else() -> None:
    files = [each for each in PAGE.rglob("*") if each.is_file()]
    assert files and sum(len(gzip.compress(each.read_bytes())) for each in files) < 250_000
    for each in files:
        hosts = set(re.findall(r"https?://([\w.]+)", each.read_text()))
        assert hosts <= {"www.w3.org"}, each  # the name of SVG


def test_the_page_needs_no_key_and_what_it_shows_does(tmp_path: Path) -> None:
    with serving(tmp_path, keys=(key("alice", writes=False),)) as running:
        assert httpx.get(running.url, headers={"accept": "text/html"}, timeout=60).status_code == 200
        assert httpx.get(f"{running.url}/v1/server", timeout=60).status_code == 401
        told = httpx.get(f"{running.url}/v1/server", headers={"x-api-key": "alice"}, timeout=60).json()
        assert (told["writes"], told["reads_paths"], told["upload_bytes"]) == (False, False, 0)
        assert [model["id"] for model in told["models"]] == ["tiny", "gpt"]


# ---------------------------------------------------------------------- into a memory


def test_the_map_says_where_each_file_stands(http: httpx.Client) -> None:
    told = http.get("/v1/memories/p/map").json()
    assert [file["path"] for file in told["files"]] == ["a.txt", "sub/b.txt"]
    first, second = told["files"]
    assert first["first"] == 0 and first["after"] == second["first"] and second["after"] == told["tokens"]
    assert not first["outdated"]


def test_lines_are_those_that_were_read(http: httpx.Client, project: Path) -> None:
    query: dict[str, Any] = {"path": "a.txt", "first": 3, "last": 4}
    told = http.get("/v1/memories/p/source", params=query).json()
    assert told["lines"] == ["line 3 says 21", "line 4 says 28"] and told["total_lines"] >= 60
    assert told["stale"] is False and not told["outdated"]
    (project / "a.txt").write_text("another\n")
    old = http.get("/v1/memories/p/source", params=query).json()
    assert old["lines"] == told["lines"] and old["stale"] is True


def test_an_earlier_version_is_found_by_its_digest(http: httpx.Client, project: Path) -> None:
    before = http.get("/v1/memories/p/source", params={"path": "a.txt"}).json()["sha256"]
    (project / "a.txt").write_text(SOURCE.replace("line 3 ", "row 3 "))
    assert http.post("/v1/memories/p/sync", json={"mode": "append"}).json()["changes"]["changed"] == ["a.txt"]
    assert [file["outdated"] for file in http.get("/v1/memories/p/map").json()["files"]] == [True, False, False]
    now = http.get("/v1/memories/p/source", params={"path": "a.txt", "first": 3, "last": 3}).json()
    then = http.get("/v1/memories/p/source", params={"path": "a.txt", "first": 3, "last": 3, "sha256": before}).json()
    assert (now["lines"], now["outdated"]) == (["row 3 says 21"], False)
    assert (then["lines"], then["outdated"]) == (["line 3 says 21"], True)


def test_a_token_leads_to_its_line(http: httpx.Client) -> None:
    tokens = http.get("/v1/memories/p/map").json()["files"][0]["after"]
    told = http.get("/v1/memories/p/source", params={"token": tokens // 2}).json()
    line = told["token_line"]
    assert told["path"] == "a.txt" and 20 <= line <= 40
    assert told["lines"][line - told["first_line"]] == f"line {line} says {line * 7}"


@pytest.mark.parametrize("query", ["", "path=a.txt&token=1", "token=99999999", "token=-1", "path=a.txt&first=0"])
def test_what_cannot_be_looked_up_is_refused(http: httpx.Client, query: str) -> None:
    assert http.get(f"/v1/memories/p/source?{query}").status_code == 400


def test_a_file_or_version_that_is_not_there(http: httpx.Client) -> None:
    for query in ("path=c.txt", "path=a.txt&sha256=0123"):
        assert http.get(f"/v1/memories/p/source?{query}").status_code == 404
    assert http.get("/v1/memories/none/map").status_code == 404


def test_changes_are_told_and_nothing_is_changed(http: httpx.Client, project: Path) -> None:
    assert http.get("/v1/memories/p/changes").json()["changed"] == []
    (project / "a.txt").write_text("another\n")
    (project / "new.txt").write_text("new\n")
    (project / "sub" / "b.txt").unlink()
    told = http.get("/v1/memories/p/changes").json()
    assert (told["known"], told["changed"], told["new"], told["removed"]) == (
        True,
        ["a.txt"],
        ["new.txt"],
        ["sub/b.txt"],
    )
    assert len(http.get("/v1/memories/p/map").json()["files"]) == 2


def test_bytes_stand_beside_those_of_others(http: httpx.Client) -> None:
    told = http.get("/v1/memories/p/bytes").json()
    assert told["total"] == sum(told["kinds"].values()) and told["kinds"]["csa_entries"] > 0
    whole = told["rivals"][0]["bytes"]
    assert "V3.2, 61 layers" in told["rivals"][0]["name"]
    assert told["same_layers"] == whole * told["layers"] // 61 > 0


def test_a_read_in_work_is_told_of(http: httpx.Client, server: Running) -> None:
    (shelf,) = server.service.registry.models["tiny"].shelves.values()
    shelf.reading["later"] = None
    found = {each["name"]: each for each in http.get("/v1/memories").json()["data"]}
    assert found["later"]["reading"]["tokens_done"] == 0 and not found["later"]["complete"]
    assert found["p"].get("reading") is None and found["p"]["source"] == ["project"]


# ---------------------------------------------------------------------- where an answer looked


def chat(http: httpx.Client, **more: Any) -> httpx.Response:
    body = {"model": "tiny@p", "messages": [{"role": "user", "content": "line 3"}], "max_tokens": 5, "attention": True}
    return http.post("/v1/chat/completions", json=body | more)


def test_each_token_tells_where_it_looked(http: httpx.Client) -> None:
    tokens = http.get("/v1/memories/p/map").json()["tokens"]
    answer = chat(http).json()
    message, prompt = answer["choices"][0]["message"], answer["usage"]["prompt_tokens"]
    looks = message["attention"]
    assert "".join(look["text"] for look in looks).strip().startswith(message["content"].strip()[:3])
    for number, look in enumerate(looks):
        assert look["position"] == prompt - 1 + number
        window, overview = look["window"], look["overview"]
        assert look["position"] - window["span"] < window["first"] + window["span"] * (len(window["share"]) - 1)
        assert window["first"] + window["span"] * (len(window["share"]) - 1) <= look["position"]
        shares = [share for _, share in look["picks"]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) < sum([*window["share"], *overview["share"], *shares]) <= 1.001
        assert all(start % 4 == 0 and start <= look["position"] for start, _ in look["picks"])
        assert any(start < tokens for start, _ in look["picks"])


def test_a_stream_tells_the_same(http: httpx.Client) -> None:
    whole = chat(http, temperature=0).json()["choices"][0]["message"]["attention"]
    text = chat(http, temperature=0, stream=True).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    looks = [look for chunk in chunks for look in chunk["choices"][0]["delta"].get("attention", [])]
    assert looks == whole


def test_nobody_is_told_who_does_not_ask(http: httpx.Client) -> None:
    assert "attention" not in chat(http, attention=False).text
    assert chat(http, model="tiny").json()["choices"][0]["message"]["attention"] == []  # no memory, nothing to look at
