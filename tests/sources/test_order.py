"""The order of reading, by git's history; and following lines from one version to the next."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.sources import Document, follow_lines, order, read_source

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)


def read_order(root: Path) -> list[str]:
    return [item.path for item in read_source(root) if isinstance(item, Document)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """hot is changed in every commit, warm in one long ago, cold and a name that is no text never again."""
    root = tmp_path / "repository"
    (root / "src").mkdir(parents=True)
    git(root.parent, "init", "-q", str(root))
    write(root / "src", cold="x\n", hot="x\n", warm="x\n")
    (root / "src" / os.fsdecode(b"odd \n\xff.py")).write_text("x\n")
    write(root, top="x\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    for turn in range(3):
        write(root / "src", hot=f"{turn}\n", **({"warm": "y\n"} if not turn else {}))
        git(root, "commit", "-qam", "more")
    write(root / "src", brand_new="x\n")
    return root


@needs_git
def test_what_rarely_changes_comes_first_and_what_git_does_not_know_last(repository: Path) -> None:
    odd = os.fsdecode(b"odd \n\xff.py")
    assert read_order(repository / "src") == ["cold.py", odd, "warm.py", "hot.py", "brand_new.py"]
    expected = ["src/cold.py", f"src/{odd}", "top.py", "src/warm.py", "src/hot.py", "src/brand_new.py"]
    assert read_order(repository) == expected


@needs_git
def test_without_an_answer_from_git_paths_decide(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = sorted(read_order(repository / "src"))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        assert read_order(repository / "src") == by_path
    with monkeypatch.context() as patch:
        patch.setattr(order, "PATIENCE", 0.0)
        assert read_order(repository / "src") == by_path
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook of another repository
    assert read_order(repository / "src")[-2:] == ["hot.py", "brand_new.py"]
    shutil.rmtree(repository / ".git")
    assert read_order(repository / "src") == by_path


@needs_git
def test_no_program_that_a_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o700)
    for key in ("core.fsmonitor", "core.pager", "diff.external", "gpg.program", "filter.x.clean", "filter.x.smudge"):
        git(repository, "config", key, str(trap))
    git(repository, "config", "log.showSignature", "true")
    (repository / ".gitattributes").write_text("*.py filter=x diff=x\n")
    assert read_order(repository / "src")[0] == "cold.py"
    assert not (tmp_path / "sprung").exists()


lines = st.lists(st.sampled_from(["a\n", "b\n", "c\r\n", "\n", "d"]), max_size=30)


@given(old=lines, new=lines)
def test_lines_are_followed_to_equal_lines_in_order(old: list[str], new: list[str]) -> None:
    places = follow_lines(old, new)
    found = [(line, now) for line, now in enumerate(places.tolist()) if now]
    assert all(old[line].rstrip("\r\n") == new[now - 1].rstrip("\r\n") for line, now in found)
    assert [now for _, now in found] == sorted({now for _, now in found})
    assert follow_lines(old, old).tolist() == list(range(1, len(old) + 1))


def test_an_inserted_line_moves_those_behind_it() -> None:
    old = [f"line {n}\n" for n in range(6)]
    assert follow_lines(old, [*old[:2], "new\n", *old[2:]]).tolist() == [1, 2, 4, 5, 6, 7]
    assert follow_lines(old, [*old[:2], "other\n", *old[3:]]).tolist() == [1, 2, 0, 4, 5, 6]
    assert follow_lines(old, []).tolist() == [0] * 6
