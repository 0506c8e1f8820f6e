"""The page in a real browser: what its tests share. The browser is the system's; playwright brings none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = os.environ.get("FOVEAL_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CUE = "foveal serve puts models and memories behind the APIs that"
"""The beginning of a sentence of docs/serving.md."""
LONG = 120_000
"""Milliseconds: the machine may have much else to do."""

Open = Callable[..., Any]
"""Opens the page at a path (`open_page`)."""


def ask(page: Any, text: str = CUE) -> None:
    """Send a message, and wait for the end of its answer."""
    page.get_by_label("Ask this memory").fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for(state="visible")
    page.get_by_role("button", name="Stop").wait_for(state="detached")


def violations(page: Any) -> str:
    """What axe finds wrong with the page as it is; empty: nothing."""
    found = axe.Axe().run(page)
    return str(found.generate_report()) if found.violations_count else ""


def accessible(page: Any) -> None:
    """No violation that axe finds."""
    assert not (found := violations(page)), found


def dragging(page: Any, *paths: Path) -> Callable[[str], None]:
    """Drags files or folders of this machine, as a file manager does: to be called with ``dragEnter``, ``dragOver``,
    ``drop``, in this order."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    return lambda kind: session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 300, "data": data})


def drop(page: Any, *paths: Path) -> None:
    """Drag something over the page and drop it."""
    drag = dragging(page, *paths)
    for kind in ("dragEnter", "dragOver", "drop"):
        drag(kind)
