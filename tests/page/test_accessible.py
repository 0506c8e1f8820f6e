"""Everybody can use every view: no violation that axe finds, and nothing wider than the page, light and dark, at three
widths."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_support import Open, accessible, ask, drop, violations

pytestmark = pytest.mark.slow

View = Callable[[Any], None]
"""What one does with the open page, a narrow one, until the view is there."""

NARROW = 390
WIDTHS = (NARROW, 900, 1440)


def _answered(page: Any, path: str, told: dict[str, Any], status: int = 200) -> None:
    """Let the server answer `told`, and look again."""
    page.route(path, lambda route: route.fulfill(status=status, json=told))
    page.reload()


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": None}}


def choosing(page: Any) -> None:
    page.get_by_role("heading", name="Choose a memory").wait_for()


def nothing_read(page: Any) -> None:
    _answered(page, "**/v1/memories", {"object": "list", "data": []})
    page.get_by_role("heading", name="Nothing has been read yet").wait_for()


def menu(page: Any) -> None:
    page.get_by_role("button", name="Memories").click()
    page.get_by_role("link", name="docs-early").wait_for()


def being_read(page: Any) -> None:
    reading = {"tokens_done": 2_000, "tokens_total": 8_000, "tokens_per_second": 100.0, "seconds_left": 60.0}
    large = {"object": "memory", "name": "large", "tokens": 0, "complete": False, "problem": None, "reading": reading}
    damaged = {"object": "memory", "name": "old", "tokens": 0, "complete": False, "problem": "a page is damaged"}
    _answered(page, "**/v1/memories", {"object": "list", "data": [large, damaged]})
    page.get_by_role("button", name="Memories").click()
    page.get_by_role("progressbar", name="Reading large").wait_for()


def without_words(page: Any) -> None:
    page.goto(page.url.split("#")[0] + "#/m/docs")
    page.get_by_label("Ask this memory").wait_for()


def answer(page: Any) -> None:
    without_words(page)
    ask(page)
    page.locator(".place").wait_for()


def broken_answer(page: Any) -> None:
    said = _error("the cache is full; try again")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, json=said))
    without_words(page)
    page.get_by_label("Ask this memory").fill("x")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()


def two_forks(page: Any) -> None:
    answer(page)
    page.get_by_role("button", name="Ask differently").click()
    ask(page, "Errors have the shape of")
    page.get_by_text("fork 2 of 2").first.wait_for()


def worded(page: Any) -> None:
    models = [{"id": "nano", "answers": False}, {"id": "smollm2", "answers": True}]
    about = {"name": "foveal", "version": "", "writes": False, "reads_paths": False, "upload_bytes": 0}
    told = [{"type": "delta", "text": "By HTTP."}, {"type": "done", "citations": [], "finish_reason": "stop"}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in told)
    page.route("**/v1/memories/docs/ask", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    _answered(page, "**/v1/server", about | {"models": models})
    without_words(page)
    page.get_by_label("Ask this memory").fill("How?")
    page.keyboard.press("Enter")
    page.get_by_text("No line of the memory holds this").wait_for()


def stale(page: Any) -> None:
    changes = {"changed": ["serving.md"], "new": ["new.md"], "removed": ["chat.md"]}
    told = {"object": "memory.changes", "name": "docs", "known": True, "reason": None, **changes}
    _answered(page, "**/v1/memories/docs/changes", told)
    without_words(page)
    page.get_by_role("button", name="Bring it up to date").wait_for()


def files(page: Any) -> None:
    without_words(page)
    page.get_by_role("button", name="Source").click()
    page.locator(".files li").first.wait_for()


def lines(page: Any) -> None:
    answer(page)
    page.get_by_role("list", name="Lines it came from").get_by_role("button").first.click()
    page.locator(".lines .hit").first.wait_for()


def sizes(page: Any) -> None:
    without_words(page)
    page.get_by_role("button", name="Bytes").click()
    page.get_by_role("table", name="Bytes of other architectures").wait_for()


def hits(page: Any) -> None:
    two_forks(page)
    page.get_by_role("button", name="Hits").click()
    page.locator(".hits li").first.wait_for()


def forking(page: Any) -> None:
    without_words(page)
    page.get_by_role("button", name="Fork …").click()
    page.get_by_role("heading", name="Fork docs").wait_for()


def reading(page: Any) -> None:
    menu(page)
    page.get_by_role("button", name="Read a folder").click()
    page.get_by_label("or a path of the server's").fill("docs")
    page.get_by_text("There is a memory of this name").wait_for()


def dropped(page: Any, folder: Path = Path(__file__).parent) -> None:
    menu(page)
    drop(page, folder)
    page.get_by_text(re.compile("^[1-9][0-9]* files")).wait_for()


def no_such_memory(page: Any) -> None:
    page.goto(page.url.split("#")[0] + "#/m/nothing")
    page.get_by_role("heading", name="No such memory").wait_for()


def failed(page: Any) -> None:
    _answered(page, "**/v1/memories", _error("it broke"), 500)
    page.get_by_role("button", name="Try again").wait_for()


def asked_for_a_key(page: Any) -> None:
    _answered(page, "**/v1/memories", _error("no key"), 401)
    page.get_by_role("heading", name="This server asks for a key").wait_for()


VIEWS: tuple[View, ...] = (
    choosing, nothing_read, menu, being_read, without_words, answer, broken_answer, two_forks, worded, stale, files,
    lines, sizes, hits, forking, reading, dropped, no_such_memory, failed, asked_for_a_key,
)  # fmt: skip


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_everybody_can_use_it(open_page: Open, view: View) -> None:
    page = open_page("/", width=NARROW, errors=True, reduced_motion="reduce")
    view(page)
    found = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            if wrong := violations(page):
                found[width, scheme] = wrong
    assert not found, "\n".join(f"{width} pixels, {scheme}: {wrong}" for (width, scheme), wrong in found.items())


def test_a_violation_is_found(open_page: Open) -> None:
    page = open_page("/")
    page.get_by_role("heading", name="Choose a memory").wait_for()
    page.evaluate("document.querySelector('h1').style.color = '#ddd'")
    with pytest.raises(AssertionError, match="color-contrast"):
        accessible(page)
