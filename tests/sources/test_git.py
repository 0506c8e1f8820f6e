"""In a work tree git says what belongs to a code base: tracked, or not ignored; and nothing but git runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from foveal.sources import Document, Skipped, read_source

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person with settings of their own, and no others."""
    folder = tmp_path / "home"
    (folder / ".config" / "git").mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith(("GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "protocol.file.allow=always",
        "-c",
        "commit.gpgsign=false",
    )
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def repository(folder: Path, files: dict[str, str], *, commit: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    write(folder, files)
    if commit:
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "first")
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path | list[Path]) -> set[str]:
    return {item.path for item in read_source(folder) if isinstance(item, Document)}


def skipped(folder: Path) -> dict[str, str]:
    return {item.path: item.reason for item in read_source(folder) if isinstance(item, Skipped)}


def test_rules_that_take_kinds_of_files_back(tmp_path: Path) -> None:
    files = {".gitignore": "*\n!*/\n!*.py\n!.gitignore\n", "a.py": "x", "sub/b.py": "x", "sub/d/c.py": "x", "e.c": "x"}
    root = repository(tmp_path / "r", files)
    assert read(root) == {".gitignore", "a.py", "sub/b.py", "sub/d/c.py"}
    assert skipped(root) == {".git/": "version control data", "e.c": "ignored by git"}
    for rule in ("*/", "**/"):
        (root / ".gitignore").write_text(rule)
        assert read(root) == {".gitignore", "a.py", "e.c"}
        assert skipped(root)["sub/"] == "ignored by git"


def test_what_is_tracked_belongs_to_it_though_ignored(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", {"storage/w.py": "x", "node_modules/m/i.js": "x", "__pycache__/p.py": "x"})
    git(root, "add", "storage", "node_modules")
    write(root, {".gitignore": "storage/\n", "storage/x.py": "x", "node_modules/n/j.js": "x"})
    assert read(root) == {".gitignore", "storage/w.py", "node_modules/m/i.js"}
    reasons = skipped(root)
    assert reasons["storage/x.py"] == "ignored by git"
    assert reasons["node_modules/n/"] == reasons["__pycache__/"] == "generated files"
    (root / "storage" / "w.py").unlink()
    assert "storage/w.py" not in read(root)


def test_rules_of_the_person_and_of_a_linked_work_tree(tmp_path: Path, home: Path) -> None:
    root = repository(tmp_path / "r", {"a.py": "x"}, commit=True)
    (home / ".config" / "git" / "ignore").write_text("*.swp\n")
    (home / "excludes").write_text("*.tmp\n")
    (root / ".git" / "info" / "exclude").write_text("secret.py\n")
    git(root, "worktree", "add", "-q", str(tmp_path / "linked"))
    for place in (root, tmp_path / "linked"):
        write(place, {"b.swp": "x", "c.tmp": "x", "secret.py": "x", "d.py": "x"})
        assert read(place) == {"a.py", "c.tmp", "d.py"}
    git(root, "config", "--global", "core.excludesFile", str(home / "excludes"))
    assert read(root) == read(tmp_path / "linked") == {"a.py", "b.swp", "d.py"}


def test_a_repository_inside_has_its_own_rules(tmp_path: Path) -> None:
    inner = repository(tmp_path / "inner", {"build/real.py": "x", "i.py": "x"}, commit=True)
    root = repository(tmp_path / "r", {".gitignore": "build/\n*.log\n", "a.py": "x"})
    git(root, "submodule", "add", "-q", str(inner), "sub")
    git(root, "submodule", "add", "-q", str(inner), "gone")
    git(root, "submodule", "deinit", "-f", "gone")
    clone = repository(root / "clone", {"b.py": "x", "c.log": "x", "mine.py": "x", ".gitignore": "d.py\n", "d.py": "x"})
    (clone / ".git" / "info" / "exclude").write_text("mine.py\n")
    write(root / "sub", {"build/new.py": "x", "e.log": "x"})
    expected = {".gitignore", ".gitmodules", "a.py", "sub/build/real.py", "sub/i.py", "sub/build/new.py", "sub/e.log"}
    expected |= {"clone/b.py", "clone/c.log", "clone/.gitignore"}
    assert read(root) == expected
    assert skipped(root)["gone/"] == "a submodule that is not checked out"
    assert read(root / "sub") == {"build/real.py", "i.py", "build/new.py", "e.log"}


def test_without_git_a_repository_inside_has_its_own_rules_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path / "r", {".gitignore": "*.log\n", "a.log": "x", "a.py": "x"}, commit=True)
    inner = repository(root / "inner", {"b.log": "x", "mine.py": "x"})
    (inner / ".git" / "info" / "exclude").write_text("mine.py\n")
    (root / ".git" / "info" / "exclude").write_text("secret.py\n")
    git(root, "worktree", "add", "-q", str(tmp_path / "linked"))
    write(tmp_path / "linked", {"secret.py": "x"})
    monkeypatch.setenv("PATH", "/nowhere")
    assert read(root) == {".gitignore", "a.py", "inner/b.log"}
    assert read(tmp_path / "linked") == {".gitignore", "a.py"}
    assert read_source(root).notes == (
        f"{root}: git is not installed; its ignore files decided what was read",
        f"{inner}: git is not installed; its ignore files decided what was read",
    )


def test_a_folder_that_is_named_is_read_though_ignored(tmp_path: Path) -> None:
    files = {".gitignore": "build/\n*.log\n", "build/a.py": "x", "build/b.log": "x", "build/in/.gitignore": "c.py\n"}
    root = repository(tmp_path / "r", {**files, "build/in/c.py": "x", "build/in/t.py": "x", "src/d.log": "x"})
    assert read(root) == {".gitignore"}
    assert read(root / "build") == {"a.py", "b.log", "in/.gitignore", "in/t.py"}
    git(root, "add", "-f", "build/in/c.py")
    assert read(root / "build") == {"a.py", "b.log", "in/.gitignore", "in/t.py", "in/c.py"}
    assert read(root / "src") == set()
    assert read([root / "src" / "d.log", root / "build"]) == {"d.log"} | {f"build/{p}" for p in read(root / "build")}


def test_a_sparse_checkout_and_conflicts(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", {"a/x.py": "x", "b/y.py": "x", "z.py": "x"}, commit=True)
    git(root, "checkout", "-qb", "other")
    (root / "z.py").write_text("y")
    git(root, "commit", "-qam", "other")
    git(root, "checkout", "-q", "-")
    (root / "z.py").write_text("w")
    git(root, "commit", "-qam", "this")
    with pytest.raises(subprocess.CalledProcessError):
        git(root, "merge", "other")
    assert [item.path for item in read_source(root) if item.path == "z.py"] == ["z.py"]
    git(root, "reset", "-q", "--hard")
    git(root, "sparse-checkout", "set", "a")
    assert read(root) == {"a/x.py", "z.py"}


def test_names_of_any_bytes_and_empty_folders(tmp_path: Path) -> None:
    odd = os.fsdecode(b"odd \n\xff\x1b[31m.py")
    root = repository(tmp_path / "r", {"a.py": "x"})
    try:
        (root / odd).write_text("x")
    except OSError:
        pytest.skip("this file system takes only text as names")
    (root / "empty" / "deep").mkdir(parents=True)
    os.mkfifo(root / "pipe")
    assert read(root) == {"a.py", odd}
    git(root, "add", "-A")
    assert read(root) == {"a.py", odd}
    assert skipped(root) == {".git/": "version control data", "pipe": "not a regular file (named pipe)"}


def test_what_stands_in_the_environment_leads_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path / "r", {"a.py": "x", ".gitignore": "b.py\n", "b.py": "x"})
    other = repository(tmp_path / "other", {"c.py": "x"}, commit=True)
    for name, place in (("GIT_DIR", ".git"), ("GIT_WORK_TREE", "."), ("GIT_INDEX_FILE", ".git/index")):
        monkeypatch.setenv(name, str(other / place))
    monkeypatch.setenv("GIT_TRACE", str(tmp_path / "trace"))
    assert read(root) == {"a.py", ".gitignore"}
    assert not (tmp_path / "trace").exists()


def test_no_program_that_a_repository_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path / "r", {"a.py": "x", ".gitattributes": "*.py filter=x\n"}, commit=True)
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o700)
    for key in ("core.fsmonitor", "core.pager", "filter.x.clean", "filter.x.smudge", "filter.x.process"):
        git(root, "config", key, str(trap))
    git(root, "config", "core.hooksPath", str(tmp_path))
    for hook in ("post-index-change", "fsmonitor-watchman"):
        shutil.copy(trap, root / ".git" / "hooks" / hook)
    os.utime(root / "a.py", (1, 1))
    shutil.copy(trap, root / "git")  # in the folder that is read, which is the current one too
    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    source = read_source(".")
    assert "a.py" in [item.path for item in source] and not source.notes
    assert not (tmp_path / "sprung").exists()


def test_a_repository_that_git_refuses_is_told(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", {"a.py": "x", ".gitignore": "b.py\n", "b.py": "x"})
    (root / ".git" / "index").write_bytes(b"no index")
    source = read_source(root)
    assert {item.path for item in source if isinstance(item, Document)} == {"a.py", ".gitignore"}
    (note,) = source.notes
    assert note.startswith(f"{root}: git says: ") and "index file" in note and "its ignore files decided" in note
    assert not read_source(tmp_path / "home").notes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_repository_of_somebody_else_is_told(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", {"a.py": "x", ".gitignore": "b.py\n", "b.py": "x"})
    for place in (root, root / ".git"):
        os.chown(place, 12345, 12345)
    source = read_source(root)
    assert {item.path for item in source if isinstance(item, Document)} == {"a.py", ".gitignore"}
    (note,) = source.notes
    assert "belongs to somebody else" in note and "safe.directory" in note


def test_a_repository_whose_work_tree_is_elsewhere_is_told(tmp_path: Path) -> None:
    """Git would answer of that place, which may be the whole disk."""
    other = tmp_path / "other"
    write(other, {"b.py": "x"})
    root = repository(tmp_path / "r", {"b.py": "x", "a.py": "x", ".gitignore": "c.py", "c.py": "x"})
    git(root, "config", "core.worktree", str(other))
    assert read(root) == {"a.py", "b.py", ".gitignore"}
    (note,) = read_source(root).notes
    assert "outside of the repository's work tree" in note


@pytest.mark.parametrize("broken", ["HEAD", "core.bare"])
def test_a_repository_that_is_none_to_git_is_told(tmp_path: Path, broken: str) -> None:
    root = repository(tmp_path / "r", {"a.py": "x"})
    if broken == "HEAD":
        (root / ".git" / "HEAD").write_text("")
    else:
        git(root, "config", "core.bare", "true")
    assert read(root) == {"a.py"}
    (note,) = read_source(root).notes
    assert note.endswith("its ignore files decided what was read")


def test_names_whose_case_git_does_not_tell_apart(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", {"Foo.py": "x", "Src/a.py": "x"}, commit=True)
    write(root, {".gitignore": "bar.py\n", "bar.py": "x", "new.py": "x"})
    (root / "Foo.py").rename(root / "foo.py")
    (root / "Src").rename(root / "src")
    for folds in ("true", "false"):
        git(root, "config", "core.ignorecase", folds)
        assert read(root) == {".gitignore", "foo.py", "src/a.py", "new.py"}
        assert skipped(root)["bar.py"] == "ignored by git"
    (root / ".gitignore").write_text("foo.py\n")
    assert "foo.py" not in read(root)
    git(root, "config", "core.ignorecase", "true")
    assert "foo.py" in read(root)  # to git it is tracked


def test_a_folder_in_the_place_of_a_tracked_file(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", {"a": "x"}, commit=True)
    (root / "a").unlink()
    write(root, {".gitignore": "*.log\n", "a/b.log": "x"})
    assert skipped(root)["a/"] == "ignored by git"
    write(root, {"a/c.py": "x"})
    assert read(root) == {".gitignore", "a/c.py"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_not_called_ignored(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", {"a.py": "x", "b/c.py": "x"})
    (root / "b").chmod(0)
    assert skipped(root)["b/"] == "folder cannot be read: Permission denied"
    (root / "b").chmod(0o700)


def test_nothing_is_fetched_for_a_partial_clone(tmp_path: Path) -> None:
    """Git would run what the repository names as the program at the other end."""
    root = repository(tmp_path / "r", {"sub/a.py": "x"}, commit=True)
    write(root, {"sub/a.py": "y"})
    git(root, "commit", "-qam", "second")
    shown = subprocess.run(["git", "-C", root, "rev-parse", "HEAD~1:sub"], capture_output=True, check=True)
    tree = shown.stdout.decode().strip()
    (root / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    mark = tmp_path / "ran"
    for name, value in {
        "extensions.partialClone": "origin",
        "remote.origin.url": str(tmp_path),
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": f"touch '{mark}'; true",
    }.items():
        git(root, "config", name, value)
    assert read(root) == {"sub/a.py"}
    assert not mark.exists()
