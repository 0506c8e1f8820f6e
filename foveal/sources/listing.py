"""What git says belongs to a work tree: what it tracks, and what else is there and not ignored.

One question for each repository (`git ls-files`), so that git's own rules hold, with the person's own ignore file and
with names of any bytes. A repository inside another (a submodule or a clone) is asked itself: the rules of the one
around it end there. Where git does not answer, the ignore files decide (`foveal.sources.ignore`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from foveal.sources import git
from foveal.sources.ignore import IgnoreRules

_LIST = ("ls-files", "-z", "-t", "--cached", "--others", "--exclude-standard")
_OTHER = b"?"
IGNORED = "ignored by git"
NOT_CHECKED_OUT = "a submodule that is not checked out"

Tell = Callable[[str], None]
"""Hears, in one line, where git was asked and did not answer."""


class Rules(Protocol):
    """What belongs to a code base, in one folder and below. Folders end in ``/``."""

    def reason(self, path: str) -> str | None:
        """Why to leave `path` out, or None."""

    def tracked(self, path: str) -> bool:
        """Whether git is known to track the file, or something in the folder."""

    def enter(self, folder: Path, path: str) -> Rules:
        """The rules inside `folder`, whose path is `path`."""


class Everything:
    """No rules at all."""

    def reason(self, path: str) -> str | None:
        return None

    def tracked(self, path: str) -> bool:
        return False

    def enter(self, folder: Path, path: str) -> Rules:
        return self


def rules_of(root: Path, start: str, tell: Tell) -> Rules:
    """The rules for reading the folder `root`, whose files have paths that begin with `start`.

    Somebody who names a folder wants it read: where the repository around it ignores `root` itself, its rules are left
    aside, and the ignore files in `root` decide (beside what git tracks there).
    """
    listing = _listing(root, start, tell)
    if listing is None:
        return ByFiles(IgnoreRules.for_root(root, start), tell)
    is_top = os.path.lexists(root / ".git")
    if not is_top and git.ask(root, "check-ignore", "-q", "--no-index", ".").output is not None:
        return ByFiles(IgnoreRules.at(root, start), tell, listing)
    return listing


def _inner_rules(folder: Path, path: str, tell: Tell) -> Rules:
    """The rules of a repository inside the one that is read."""
    return _listing(folder, path, tell) or ByFiles(IgnoreRules.of_repository(folder, path), tell)


def _listing(folder: Path, start: str, tell: Tell) -> Listing | None:
    answer = git.of_work_tree(folder, *_LIST)
    if answer.output is not None:
        return Listing.of(folder, start, answer.output, tell)
    if _in_repository(folder):
        tell(f"{folder}: {answer.problem}; its ignore files decided what was read")
    return None


def _in_repository(folder: Path) -> bool:
    return any(os.path.lexists(place / ".git") for place in (folder, *folder.parents))


@dataclass
class Listing:
    """Git's answer for `folder` and all below it, by path from there. `files` and `folders` (of files) say whether git
    tracks them, or some of what is in them; `repositories` are those inside that git does not track."""

    folder: Path
    start: str
    """Path of `folder` from the folder that is read, ending in ``/`` or empty."""
    tell: Tell
    files: dict[str, bool] = field(default_factory=dict)
    folders: dict[str, bool] = field(default_factory=dict)
    repositories: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path, start: str, output: bytes, tell: Tell) -> Listing:
        """From what `git ls-files` printed."""
        made = cls(folder, start, tell)
        for entry in output.split(b"\0")[:-1]:
            path, tracked = os.fsdecode(entry[2:]), not entry.startswith(_OTHER)
            if path.endswith("/"):
                made.repositories.add(path)
            else:
                made.files[path] = tracked or made.files.get(path, False)
            made._note_folders(path.removesuffix("/"), tracked)
        return made

    def _note_folders(self, path: str, tracked: bool) -> None:
        end = path.rfind("/")
        while end >= 0 and self.folders.get(folder := path[: end + 1]) not in (True, tracked):
            self.folders[folder] = tracked
            end = path.rfind("/", 0, end)

    def reason(self, path: str) -> str | None:
        own = self._as_git_has(path)
        if own in self.files or own in self.folders or own in self.repositories:
            return None
        if not own.endswith("/"):
            return IGNORED
        if own[:-1] in self.files and os.path.lexists(self.folder / own / ".git"):
            return None
        if not _is_hollow(self.folder / own):
            return IGNORED
        return NOT_CHECKED_OUT if own[:-1] in self.files else None

    def tracked(self, path: str) -> bool:
        own = self._as_git_has(path)
        return self.files.get(own.removesuffix("/"), False) or self.folders.get(own, False)

    def _as_git_has(self, path: str) -> str:
        """`path` from `folder` on, as git has it: where it does not tell cases apart, a tracked file may be called
        otherwise by now."""
        own = path[len(self.start) :]
        if own in self.files or own in self.folders or own in self.repositories:
            return own
        other = self._by_folded.get(_folded(own))
        return own if other is None or not self._folds_case else other

    @cached_property
    def _by_folded(self) -> dict[bytes, str]:
        return {_folded(path): path for paths in (self.files, self.folders) for path in paths if paths[path]}

    @cached_property
    def _folds_case(self) -> bool:
        said = git.ask(self.folder, "config", "--type=bool", "core.ignorecase").output
        return said is not None and said.strip() == b"true"

    def enter(self, folder: Path, path: str) -> Rules:
        own = path[len(self.start) :]
        if own in self.repositories or (own[:-1] in self.files and own not in self.folders):
            return _inner_rules(folder, path, self.tell)
        return self


@dataclass(frozen=True)
class ByFiles:
    """What the ignore files say, where git does not; and, of a folder that the repository around it ignores, what git
    tracks there all the same (`around`)."""

    rules: IgnoreRules
    tell: Tell
    around: Listing | None = None

    def reason(self, path: str) -> str | None:
        file = None if self.tracked(path) else self.rules.ignored_by(path)
        return None if file is None else f"ignored by {file}"

    def tracked(self, path: str) -> bool:
        return self.around is not None and self.around.tracked(path)

    def enter(self, folder: Path, path: str) -> Rules:
        if os.path.lexists(folder / ".git"):
            return _inner_rules(folder, path, self.tell)
        return ByFiles(self.rules.enter(folder, path), self.tell, self.around)


def _folded(path: str) -> bytes:
    """As git compares names without their case: ASCII only."""
    return os.fsencode(path).lower()


def _is_hollow(folder: Path) -> bool:
    """Whether there is nothing in `folder` but folders: git, which knows no folders, has nothing to say of it. Of what
    cannot be read neither."""
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        return False
                    waiting.append(Path(entry.path))
        except OSError:
            continue
    return True
