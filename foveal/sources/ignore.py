"""What ``.gitignore`` files say, where git cannot be asked: nested, with git's precedence.

An ignored folder is not entered, and so (as in git) nothing in it can be taken back by a ``!`` pattern. What git knows
beside these files is not known here: which files it tracks, and the ignore file of the person.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from foveal.sources.wildmatch import Patterns

IGNORE_FILE = ".gitignore"
_MAX_IGNORE_BYTES = 1 << 20


@dataclass(frozen=True)
class _Rules:
    folder: str
    """Where the patterns are anchored: path from the topmost folder, ending in ``/`` (empty for that folder)."""
    shown: str
    patterns: Patterns


@dataclass(frozen=True)
class IgnoreRules:
    """The rules in force in one folder: its own and those of the folders above it. Immutable; `enter` goes down."""

    base: str
    """What goes before a path from the folder that is read to make it one from the topmost folder with rules."""
    rules: tuple[_Rules, ...] = ()
    start: str = ""
    """What the paths that are asked for begin with, and `base` stands in for."""

    @classmethod
    def for_root(cls, root: Path, start: str = "") -> Self:
        """The rules that hold in `root`, the folder that is read: its own, and those of the git repository it lies in,
        if any. Those count unless they ignore `root` itself: somebody who names it wants it read."""
        top = next((p for p in (root, *root.parents) if os.path.lexists(p / ".git")), root)
        rules = cls("", start=start)._with_exclude_file(top, "", ".git/info/exclude")
        rules = rules._with(top / IGNORE_FILE, "", _shown(top / IGNORE_FILE, root))
        parts = root.relative_to(top).parts
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth]) + "/"
            if rules._matching(folder):
                return cls.at(root, start)
            path = top / folder / IGNORE_FILE
            rules = rules._with(path, folder, _shown(path, root))
        return cls("/".join(parts) + "/" if parts else "", rules.rules, start)

    @classmethod
    def at(cls, folder: Path, path: str) -> Self:
        """Only the rules of `folder` itself, whose path from the one that is read is `path`."""
        return cls("", start=path)._with(folder / IGNORE_FILE, "", path + IGNORE_FILE)

    @classmethod
    def of_repository(cls, folder: Path, path: str) -> Self:
        """The rules of a repository inside the folder that is read: those around it end there."""
        rules = cls("", start=path)._with_exclude_file(folder, "", path + ".git/info/exclude")
        return rules._with(folder / IGNORE_FILE, "", path + IGNORE_FILE)

    def enter(self, folder: Path, path: str) -> Self:
        """The rules inside `folder`, whose path from the folder that is read is `path` (ending in ``/``)."""
        return self._with(folder / IGNORE_FILE, self.base + path[len(self.start) :], path + IGNORE_FILE)

    def ignored_by(self, path: str) -> str | None:
        """Which ignore file says to leave `path` out (folders end in ``/``), or None. The nearest file decides."""
        return self._matching(self.base + path[len(self.start) :])

    def _matching(self, path: str) -> str | None:
        for rules in reversed(self.rules):
            verdict = rules.patterns.verdict(path[len(rules.folder) :])
            if verdict is not None:
                return rules.shown if verdict else None
        return None

    def _with_exclude_file(self, top: Path, folder: str, shown: str) -> Self:
        git_folder = _git_folder(top)
        return self if git_folder is None else self._with(git_folder / "info" / "exclude", folder, shown)

    def _with(self, file: Path, folder: str, shown: str) -> Self:
        content = _content(file)
        if not content:
            return self  # none there, or not a readable file: no rules
        return type(self)(self.base, (*self.rules, _Rules(folder, shown, Patterns.of_file(content))), self.start)


def _content(file: Path) -> bytes:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(_MAX_IGNORE_BYTES)
    except OSError:
        return b""


def _git_folder(top: Path) -> Path | None:
    """Where the repository of the work tree `top` keeps what all its work trees share, or None."""
    folder = top / ".git"
    if not folder.is_dir():
        said = _content(folder)
        if not said.startswith(b"gitdir: "):
            return None
        folder = top / os.fsdecode(said.removeprefix(b"gitdir: ").rstrip(b"\r\n"))
    shared = _content(folder / "commondir").rstrip(b"\r\n")
    return folder / os.fsdecode(shared) if shared else folder


def _shown(file: Path, root: Path) -> str:
    return os.path.relpath(file, root).replace(os.sep, "/")
