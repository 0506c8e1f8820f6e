"""The files of a folder, in one order, and why the others are left out.

What is special here: the order is that of the full paths as strings, on every machine; links are never followed (so
there are no loops and no way out of the folder); and nothing is opened here, so that pipes, devices and huge files
cost nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pathspec

from foveal.sources.document import Skipped
from foveal.sources.ignore import IgnoreRules

VERSION_CONTROL = frozenset({".git", ".hg", ".svn", ".bzr"})
GENERATED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_MARKED_FOLDERS = {
    "CACHEDIR.TAG": "a cache (it holds CACHEDIR.TAG)",
    "pyvenv.cfg": "a Python virtual environment (it holds pyvenv.cfg)",
}


@dataclass(frozen=True)
class Candidate:
    """A regular file that may be read: its path from the root, where it is, and its size in bytes."""

    path: str
    absolute: Path
    size: int


@dataclass(frozen=True)
class Filters:
    """What the caller asked for, beside the code base's own rules. Globs are in gitignore syntax."""

    max_file_bytes: int
    include: pathspec.GitIgnoreSpec | None = None
    exclude: pathspec.GitIgnoreSpec | None = None
    use_gitignore: bool = True


def walk(root: Path, filters: Filters) -> Iterator[Candidate | Skipped]:
    """Every file below `root`, either as a candidate or as skipped, ordered by path. Never raises for what it finds."""
    rules = IgnoreRules.for_root(root) if filters.use_gitignore else IgnoreRules("")
    stack = [_entries(root, "", rules, filters)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, _Folder):
            inner = rules if not filters.use_gitignore else entry.rules.enter(entry.absolute, entry.path)
            stack.append(_entries(entry.absolute, entry.path, inner, filters))
        else:
            yield entry


@dataclass(frozen=True)
class _Folder:
    path: str
    absolute: Path
    rules: IgnoreRules


def _entries(
    folder: Path, prefix: str, rules: IgnoreRules, filters: Filters
) -> Iterator[Candidate | Skipped | _Folder]:
    try:
        with os.scandir(folder) as scan:
            found = list(scan)
    except OSError as error:
        yield Skipped(prefix or "./", f"folder cannot be read: {error.strerror}")
        return
    marks = [why for name, why in _MARKED_FOLDERS.items() if prefix and any(entry.name == name for entry in found)]
    if marks:
        yield Skipped(prefix, marks[0])
        return
    # With its slash a folder sorts among the files as its contents' full paths do.
    for name, entry in sorted((_name(entry), entry) for entry in found):
        yield _judge(prefix + name, Path(entry.path), rules, filters)


def _name(entry: os.DirEntry[str]) -> str:
    try:
        return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
    except OSError:
        return entry.name  # what is wrong with it shows when it is looked at


def _judge(path: str, absolute: Path, rules: IgnoreRules, filters: Filters) -> Candidate | Skipped | _Folder:
    reason = _excluded(path, rules, filters)
    if reason:
        return Skipped(path, reason)
    if path.endswith("/"):
        return _Folder(path, absolute, rules)
    try:
        status = absolute.lstat()
    except OSError as error:
        return Skipped(path, f"cannot be read: {error.strerror}")
    reason = _unfit(absolute, status, filters.max_file_bytes)
    return Skipped(path, reason) if reason else Candidate(path, absolute, status.st_size)


def _excluded(path: str, rules: IgnoreRules, filters: Filters) -> str | None:
    name = path.rstrip("/").rpartition("/")[2]
    if name in VERSION_CONTROL:
        return "version control data"
    if path.endswith("/") and name in GENERATED_FOLDERS:
        return "generated files"
    ignored = rules.ignored_by(path)
    if ignored:
        return f"ignored by {ignored}"
    if filters.exclude is not None and filters.exclude.match_file(path):
        return "excluded by request"
    if filters.include is not None and not path.endswith("/") and not filters.include.match_file(path):
        return "not among the files asked for"
    return None


def _unfit(absolute: Path, status: os.stat_result, max_file_bytes: int) -> str | None:
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return _about_link(absolute)
    if not stat.S_ISREG(mode):
        return f"not a regular file ({_kind(mode)})"
    if status.st_size > max_file_bytes:
        return too_large(status.st_size, max_file_bytes)
    return "empty file" if status.st_size == 0 else None


def too_large(size: int, limit: int) -> str:
    """The reason for leaving out a file of `size` bytes."""
    return f"larger than the limit ({size:,} > {limit:,} bytes)"


def _about_link(absolute: Path) -> str:
    try:
        target = absolute.resolve(strict=True)
    except FileNotFoundError:
        return "symbolic link to nothing"
    except (OSError, RuntimeError):
        return "symbolic link that leads in a circle"
    return f"symbolic link to {target} (links are not followed)"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(mode), "unknown kind")
