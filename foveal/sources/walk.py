"""The files of a folder, in one order, and why the others are left out.

The order is that of the full paths as strings, on every machine. Links are never followed, so there are no loops and no
way out of the folder. Nothing is opened here, so that pipes, devices and huge files cost nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from foveal.sources.document import Skipped
from foveal.sources.listing import Everything, Rules, Tell, rules_of
from foveal.sources.wildmatch import Patterns

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
    named: bool = False
    """Whether somebody named this very file."""


@dataclass(frozen=True)
class Filters:
    """What the caller asked for, beside the code base's own rules. Globs are in gitignore syntax."""

    max_file_bytes: int
    include: Patterns | None = None
    exclude: Patterns | None = None
    use_gitignore: bool = True


def walk(root: Path, filters: Filters, tell: Tell, *, start: str = "") -> Iterator[Candidate | Skipped]:
    """Every file below `root`, either as a candidate or as skipped, ordered by path. Never raises for what it finds;
    `tell` hears where git was asked and did not answer. `start` goes before every path (it ends in ``/``)."""
    rules = rules_of(root, start, tell) if filters.use_gitignore else Everything()
    stack = [_entries(_Folder(start, root, rules, is_root=True), filters)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, _Folder):
            stack.append(_entries(entry, filters))
        else:
            yield entry


@dataclass(frozen=True)
class _Folder:
    path: str
    absolute: Path
    rules: Rules
    only: str = ""
    """Why nothing but what git tracks is read here, if so."""
    is_root: bool = False


def _entries(folder: _Folder, filters: Filters) -> Iterator[Candidate | Skipped | _Folder]:
    try:
        with os.scandir(folder.absolute) as scan:
            found = list(scan)
    except OSError as error:
        yield Skipped(folder.path or "./", f"folder cannot be read: {error.strerror}")
        return
    names = set() if folder.is_root else {entry.name for entry in found}
    mark = next((why for name, why in _MARKED_FOLDERS.items() if name in names), None)
    if mark is not None:
        if not folder.rules.tracked(folder.path):
            yield Skipped(folder.path, mark)
            return
        folder = replace(folder, only=mark)
    # With its slash a folder sorts among the files as its contents' full paths do.
    for name, entry in sorted((_name(entry), entry) for entry in found):
        yield from _judge(folder, name, Path(entry.path), filters)


def _name(entry: os.DirEntry[str]) -> str:
    try:
        return entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
    except OSError:
        return entry.name  # what is wrong with it shows when it is looked at


def _judge(folder: _Folder, name: str, absolute: Path, filters: Filters) -> Iterator[Candidate | Skipped | _Folder]:
    path = folder.path + name
    only = folder.only or ("generated files" if name.removesuffix("/") in GENERATED_FOLDERS and name[-1] == "/" else "")
    reason = _excluded(path, name, folder.rules, filters, only)
    if name.endswith("/"):
        inner = folder.rules if reason else folder.rules.enter(absolute, path)
        yield Skipped(path, reason) if reason else _Folder(path, absolute, inner, only)
        return
    try:
        status = absolute.lstat()
    except OSError as error:
        yield Skipped(path, f"cannot be read: {error.strerror}")
        return
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):  # git has nothing to say of anything else
        reason = reason or _unfit(absolute, status, filters.max_file_bytes)
    else:
        reason = _unfit(absolute, status, filters.max_file_bytes)
    yield Skipped(path, reason) if reason else Candidate(path, absolute, status.st_size)


def _excluded(path: str, name: str, rules: Rules, filters: Filters, only: str) -> str | None:
    if name.removesuffix("/") == ".git" or (name.removesuffix("/") in VERSION_CONTROL and not rules.tracked(path)):
        return "version control data"
    if only and not rules.tracked(path):
        return only
    reason = rules.reason(path)
    if reason:
        return reason
    if filters.exclude is not None and filters.exclude.covers(path):
        return "excluded by request"
    if filters.include is not None and not path.endswith("/") and not filters.include.covers(path):
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
