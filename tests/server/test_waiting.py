"""Agents that wait for others to append to what they share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server_support import serving

pytestmark = pytest.mark.slow

MANY = 8


@pytest.mark.parametrize("what", ["append", "delete"])
def test_one_looks_for_all_who_wait(tmp_path: Path, what: str) -> None:
    with serving(tmp_path) as running, ThreadPoolExecutor(MANY) as threads:
        memory = f"{running.url}/v1/memories/s"
        httpx.post(f"{running.url}/v1/memories", json={"name": "s", "text": "hello\n"}, timeout=60)
        head = httpx.get(f"{memory}/head", timeout=60).json()["head"]
        client = httpx.Client(timeout=60)
        asked = [threads.submit(client.get, f"{memory}/head?after={head}&wait=60") for _ in range(MANY)]
        (shelf,) = next(iter(running.service.registry.models.values())).shelves.values()
        while running.call(lambda: shelf.heads.waiting.total()) < MANY:
            time.sleep(0.001)
        assert running.call(lambda: len(shelf.heads)) == 1
        if what == "append":
            now = httpx.post(f"{memory}/append", json={"text": "more\n"}, timeout=60).json()["head"]
            assert {each.result().json()["head"] for each in asked} == {now}
        else:
            httpx.delete(memory, timeout=60)
            assert {each.result().status_code for each in asked} == {404}
        client.close()
        assert running.call(lambda: len(shelf.heads) + shelf.heads.waiting.total()) == 0


def test_who_waits_is_told_when_the_server_is_stopped(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        with serving(tmp_path) as running:
            httpx.post(f"{running.url}/v1/memories", json={"name": "s", "text": "hello\n"}, timeout=60)
            head = httpx.get(f"{running.url}/v1/memories/s/head", timeout=60).json()["head"]
            url = f"{running.url}/v1/memories/s/head?after={head}&wait=60"
            asked = threads.submit(httpx.get, url, timeout=60)
            (shelf,) = next(iter(running.service.registry.models.values())).shelves.values()
            while not running.call(lambda: shelf.heads.waiting.total()):
                time.sleep(0.001)
        assert asked.result().json()["head"] == head
