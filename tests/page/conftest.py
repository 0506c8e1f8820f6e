"""A browser, and a server on the nano with a memory of three documents and a fork of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cli_support import TOKENIZER
from server_support import Running, serving

DOCS = Path(__file__).parents[2] / "docs"
FILES = ("serving.md", "indexer.md", "chat.md")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "docs").mkdir()
    for name in FILES:
        shutil.copy(DOCS / name, folder / "docs")
    (folder / "notes").mkdir()
    (folder / "notes" / "plan.txt").write_text("".join(f"step {n}: measure, then change\n" for n in range(30)))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, TOKENIZER, name="nano", roots=(root,), aliases={}, save_prompts=False) as running:
        import httpx

        with httpx.Client(base_url=running.url, timeout=300) as http:
            assert http.post("/v1/memories", json={"name": "docs", "path": "docs"}).status_code == 201
            assert http.post("/v1/memories/docs/fork", json={"name": "docs-early", "at": 3000}).status_code == 201
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from page_support import CHROMIUM, playwright

    if CHROMIUM is None:
        pytest.skip("there is no browser")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, server: Running) -> Iterator[Any]:
    """Opens the page; in the end nothing may have gone wrong in it, nor been asked of anybody else."""
    from page_support import LONG

    told: list[str] = []
    asked: list[str] = []
    contexts = []

    def open(path: str = "/", *, url: str = server.url, width: int = 1280, errors: bool = False, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LONG)
        if not errors:
            page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + path)
        return page

    yield open
    for context in contexts:
        context.close()
    assert told == []
    assert {urlsplit(url).hostname for url in asked if not url.startswith("data:")} == {"127.0.0.1"}
