"""Folders that are dropped on the page, or chosen, become memories. They are real ones: the browser reads the disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_support import Open, accessible, dragging, drop
from server_support import Running, key, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout: two texts in folders, one of them empty, one that is none, and what git and npm keep beside them."""
    folder = tmp_path / "project"
    for name in ("sub/deep", ".git", "node_modules/left-pad"):
        (folder / name).mkdir(parents=True)
    (folder / "a.md").write_text("# Title\n\nA sentence.\n" * 20)
    (folder / "sub" / "deep" / "b.txt").write_text("Ein Satz über Äpfel.\n" * 20)
    (folder / "sub" / "empty.txt").write_text("")
    (folder / "c.bin").write_bytes(b"\0\1\2\xff")
    (folder / ".git" / "config").write_text("[core]\n")
    (folder / "node_modules" / "left-pad" / "index.js").write_text("module.exports = 1;\n")
    return folder


def read(page: Any, name: str) -> None:
    """Let what was taken be read as memory `name`, and wait for it."""
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Read", exact=True).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()


def paths(server: Running, name: str) -> list[str]:
    """The files of a memory, in its order."""
    told = httpx.get(f"{server.url}/v1/memories/{name}/map", timeout=60).json()
    return [file["path"] for file in told["files"]]


def test_a_folder_that_is_dropped_is_read(open_page: Open, server: Running, project: Path) -> None:
    page = open_page()
    page.get_by_role("button", name="Read a folder").wait_for()
    drop(page, project)
    page.get_by_text(re.compile("2 files, .* 1 file left out")).wait_for()
    assert page.get_by_label("Name").input_value() == "project"
    accessible(page)
    read(page, "dropped")
    assert "of 2 files" in page.locator(".facts").inner_text()
    assert sorted(paths(server, "dropped")) == ["project/a.md", "project/sub/deep/b.txt"]
    page.get_by_role("button", name="Source").click()
    page.get_by_role("button", name="project/sub/deep/b.txt").click()
    page.get_by_text("Ein Satz über Äpfel.").first.wait_for()


def test_a_folder_that_is_chosen_is_read_alike(open_page: Open, server: Running, project: Path) -> None:
    page = open_page()
    page.get_by_role("button", name="Read a folder").click()
    page.get_by_label("A folder of yours").set_input_files(project)
    page.get_by_text(re.compile("2 files, .* 1 file left out")).wait_for()
    read(page, "chosen")
    assert sorted(paths(server, "chosen")) == ["project/a.md", "project/sub/deep/b.txt"]


def test_a_large_folder_is_read_whole(open_page: Open, server: Running, tmp_path: Path) -> None:
    folder = tmp_path / "many"  # browsers tell of a hundred entries at a time
    folder.mkdir()
    for number in range(230):
        (folder / f"{number}.txt").write_text(f"file {number}\n")
    page = open_page()
    page.get_by_role("button", name="Read a folder").wait_for()
    drop(page, folder)
    page.get_by_text("230 files").wait_for()
    read(page, "many")
    assert len(paths(server, "many")) == 230


def test_several_files_and_folders_go_into_one_memory(open_page: Open, server: Running, project: Path) -> None:
    beside = project.parent / "beside.txt"
    beside.write_text("beside the folder\n" * 20)
    page = open_page()
    page.get_by_role("button", name="Read a folder").wait_for()
    drop(page, project / "sub", beside)
    page.get_by_text(re.compile("^2 files")).wait_for()
    read(page, "several")
    assert sorted(paths(server, "several")) == ["beside.txt", "sub/deep/b.txt"]


def test_a_folder_without_texts_is_said_to_have_none(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG\0\0")
    page = open_page()
    page.get_by_role("button", name="Read a folder").wait_for()
    drop(page, tmp_path / "pictures")
    page.get_by_text("There is no text in it; 1 file left out").wait_for()
    assert page.get_by_role("button", name="Read", exact=True).is_disabled()


def test_the_page_says_where_to_drop_while_something_is_dragged(open_page: Open, project: Path) -> None:
    page = open_page()
    page.get_by_role("button", name="Read a folder").wait_for()
    drag = dragging(page, project)
    drag("dragEnter")
    drag("dragOver")
    page.get_by_text("Drop it to read it").wait_for()
    drag("drop")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="Read into a memory").wait_for(state="detached")
    assert page.get_by_text("Drop it to read it").count() == 0


def test_a_key_that_may_not_write_drops_nothing(open_page: Open, tmp_path: Path, project: Path) -> None:
    with serving(tmp_path, keys=(key("alice", writes=False),)) as locked:
        page = open_page("/", url=locked.url, errors=True)
        page.get_by_label("Key").fill("alice")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Nothing has been read yet").wait_for()
        drag = dragging(page, project)
        drag("dragEnter")
        drag("dragOver")
        assert page.get_by_text("Drop it to read it").count() == 0
        assert page.get_by_role("dialog").count() == 0
