"""Which files a code base itself says to leave out: ``.gitignore`` files, nested, with git's precedence.

What is special here: an ignored folder is not entered, and so (as in git) nothing in it can be taken back by a ``!``
pattern. Rules of the repository above the folder being read count too, unless they ignore that very folder: somebody
who names it wants it read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pathspec

IGNORE_FILE = ".gitignore"
_MAX_IGNORE_BYTES = 1 << 20
_ALL_BELOW = re.compile(r"(^!?|/)\*\*\s*$")


def compile_patterns(lines: list[str]) -> pathspec.GitIgnoreSpec:
    """Patterns in gitignore syntax; lines that are no pattern are left out, as git does."""
    good = []
    for line in lines:
        # "x/**" is all that lies in x, not x itself; "x/**/*" says that without matching the folder's own path.
        line = _ALL_BELOW.sub(r"\1**/*", line)
        try:
            pathspec.GitIgnoreSpec.from_lines([line])
        except ValueError:
            continue
        good.append(line)
    return pathspec.GitIgnoreSpec.from_lines(good)


def _verdict(spec: pathspec.GitIgnoreSpec, path: str) -> bool | None:
    """Whether the last pattern that matches `path` itself ignores it; None when none does.

    A pattern that only matches a folder above says nothing of `path`: had it ignored that folder, nobody would ask, and
    if it takes the folder back (``!``), what lies inside is still decided by the patterns that match it.
    """
    for pattern in reversed(list(spec.patterns)):
        match = pattern.regex.match(path) if pattern.regex is not None and pattern.include is not None else None
        if match is None:
            continue
        slash = match.end("ps_d") if "ps_d" in match.re.groupindex else -1
        if slash in (-1, len(path)):
            return bool(pattern.include)
    return None


@dataclass(frozen=True)
class _Rules:
    folder: str
    """Where the patterns are anchored: path from the topmost folder, ending in ``/`` (empty for that folder)."""
    shown: str
    spec: pathspec.GitIgnoreSpec


@dataclass(frozen=True)
class IgnoreRules:
    """The rules in force in one folder: its own and those of the folders above it. Immutable; `enter` goes down."""

    base: str
    """Path of the folder being read from the topmost folder with rules, ending in ``/`` or empty."""
    rules: tuple[_Rules, ...] = ()

    @classmethod
    def for_root(cls, root: Path) -> Self:
        """The rules that hold in `root`: its own, and those of the git repository it lies in, if any."""
        top = next((p for p in (root, *root.parents) if os.path.lexists(p / ".git")), root)
        rules = cls("")
        if (top / ".git").is_dir():
            rules = rules._with(top / ".git" / "info" / "exclude", "", ".git/info/exclude")
        rules = rules._with(top / IGNORE_FILE, "", _shown(top / IGNORE_FILE, root))
        parts = root.relative_to(top).parts
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth]) + "/"
            if rules._matching(folder):
                return cls("")._with(root / IGNORE_FILE, "", IGNORE_FILE)
            path = top / folder / IGNORE_FILE
            rules = rules._with(path, folder, _shown(path, root))
        return cls("/".join(parts) + "/" if parts else "", rules.rules)

    def enter(self, folder: Path, path: str) -> Self:
        """The rules inside `folder`, whose path from the root is `path` (ending in ``/``)."""
        return self._with(folder / IGNORE_FILE, self.base + path, path + IGNORE_FILE)

    def ignored_by(self, path: str) -> str | None:
        """Which ignore file says to leave `path` out (folders end in ``/``), or None. The nearest file decides."""
        return self._matching(self.base + path)

    def _matching(self, path: str) -> str | None:
        for rules in reversed(self.rules):
            verdict = _verdict(rules.spec, path[len(rules.folder) :])
            if verdict is not None:
                return rules.shown if verdict else None
        return None

    def _with(self, file: Path, folder: str, shown: str) -> Self:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as stream:
                raw = stream.read(_MAX_IGNORE_BYTES)
        except OSError:
            return self  # none there, or not a readable file: no rules
        lines = raw.decode("utf-8-sig", "surrogateescape").splitlines()
        return type(self)(self.base, (*self.rules, _Rules(folder, shown, compile_patterns(lines))))


def _shown(file: Path, root: Path) -> str:
    return os.path.relpath(file, root).replace(os.sep, "/")
