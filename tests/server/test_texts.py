"""Texts that are sent lie beside the store just as long as there is a memory of them, and are the ones it has read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Running, serving

from foveal.server.memories import working

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path) as running:
        yield running


def create(server: Running, name: str, text: str, **settings: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/memories", json={"name": name, "text": text} | settings, timeout=60)


def changes(server: Running, name: str) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{server.url}/v1/memories/{name}/changes", timeout=60).json()
    return told


def lying(folder: Path) -> list[str]:
    """Names of the memories whose texts lie beside the store, and whatever else is there."""
    return sorted(path.name for path in (folder / "store.server" / "texts").glob("*/*"))


def test_texts_of_a_name_that_is_being_read_stay(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    read = working.Memory.read

    def slowly(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return read(*arguments, **options)

    monkeypatch.setattr(working.Memory, "read", slowly)
    first: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: first.append(create(server, "m", "the first\n" * 9)))
    thread.start()
    assert begun.wait(60)
    for settings in ({}, {"replace": True}):
        assert create(server, "m", "the second\n", **settings).status_code == 503
    upload = httpx.post(f"{server.url}/v1/memories/m/upload", files={"files": ("text.md", b"third\n")}, timeout=60)
    assert upload.status_code == 503
    go_on.set()
    thread.join()
    assert first[0].status_code == 201
    found = httpx.get(f"{server.url}/v1/memories/m/source?path=text.md", timeout=60).json()
    assert set(found["lines"]) == {"the first"}
    assert changes(server, "m") == {
        "object": "memory.changes", "name": "m", "known": True, "reason": None, "changed": [], "new": [], "removed": []
    }  # fmt: skip
    assert lying(tmp_path) == ["m"]


def test_a_name_that_was_taken_while_one_waited_for_a_place(tmp_path: Path) -> None:
    with serving(tmp_path, running=1) as server:
        place = server.service.gate._places
        server.run(place.acquire())
        answers: list[httpx.Response] = []

        def make(text: str) -> None:
            answers.append(create(server, "m", text))

        threads = [threading.Thread(target=make, args=(text,)) for text in ("one\n", "two\n")]
        for thread in threads:
            thread.start()
        while server.service.gate.waiting < 2:
            time.sleep(0.001)
        server.call(place.release)
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [201, 409]
        assert not changes(server, "m")["changed"]


@pytest.mark.parametrize("stream", [False, True])
def test_texts_of_what_was_not_read_do_not_stay(server: Running, tmp_path: Path, stream: bool) -> None:
    assert "nothing to read" in create(server, "m", "", stream=stream).text
    assert lying(tmp_path) == []
    create(server, "m", "the first\n")
    assert "nothing to read" in create(server, "m", "", replace=True, stream=stream).text
    assert lying(tmp_path) == ["m"] and changes(server, "m")["known"] and not changes(server, "m")["changed"]
    create(server, "m", "the second\n", replace=True)
    found = httpx.get(f"{server.url}/v1/memories/m/source?path=text.md", timeout=60).json()
    assert found["lines"] == ["the second"] and not found["stale"] and lying(tmp_path) == ["m"]
