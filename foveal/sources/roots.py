"""What a person named to be read: folders, files and streams, and what their files are called.

One folder is read under the paths below it. Of several, each is known by its last name (`src/a.py`, `docs/b.md`); where
two share it, by as many folders before it as tell them apart.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from foveal.sources.document import SourceError

STANDARD_INPUT = "-"
"""What is given as the path of standard input."""
STDIN_PATH = "<stdin>"
_DESCRIPTOR = re.compile(r"/(?:dev/fd|proc/self/fd)/(\d+)")


@dataclass(frozen=True)
class Root:
    """One thing to read. `start` goes before the paths of its files; of a single file it is the whole path."""

    given: str
    place: Path | None
    """Where it is, all links followed; None for standard input."""
    kind: Literal["folder", "file", "stream"]
    start: str = ""

    def holds(self, path: str) -> bool:
        """Whether `path` is of this one."""
        return path.startswith(self.start) if self.kind == "folder" else path == self.start


def find_roots(paths: Sequence[str]) -> tuple[Root, ...]:
    """What `paths` name, each once. Raises `SourceError` when one does not exist or cannot be read."""
    found: dict[object, Root] = {}
    for path in paths:
        root = _root(path)
        # Standard input has many names.
        found.setdefault(root.place or STDIN_PATH, root)
    roots = list(found.values())
    names = _names(roots)
    if len(roots) == 1 and roots[0].kind == "folder":
        names = [""]
    ends = ("/" if root.kind == "folder" and name else "" for root, name in zip(roots, names, strict=True))
    return tuple(
        Root(root.given, root.place, root.kind, name + end) for root, name, end in zip(roots, names, ends, strict=True)
    )


def is_stream(path: str) -> bool:
    """Whether `path` names something that can be read once only: standard input, a pipe, a terminal."""
    if path == STANDARD_INPUT or _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def plain_path(path: str) -> str:
    """`path` as it is remembered: ``-`` for standard input under whatever name, else absolute."""
    return STANDARD_INPUT if path == STANDARD_INPUT or _descriptor(path) == 0 else str(Path(path).absolute())


@contextmanager
def open_stream(root: Root, stdin: BinaryIO | None) -> Iterator[BinaryIO]:
    """The bytes of a stream. Opening a named pipe waits for its writer. Raises `OSError`."""
    if root.place is None:
        yield stdin or sys.stdin.buffer
        return
    number = _descriptor(root.given)
    with os.fdopen(os.dup(number), "rb") if number is not None else root.place.open("rb") as stream:
        yield stream


def place_of(roots: Sequence[Root], path: str) -> Path:
    """The file that `path` names in what was read, all links followed.

    Raises `SourceError` when it is none of a file, or lies outside of what was read, wherever links lead.
    """
    for root in roots:
        if root.place is None or root.kind == "stream" or not root.holds(path):
            continue
        inner = path[len(root.start) :]
        try:
            place = (root.place / inner).resolve(strict=True) if root.kind == "folder" else root.place
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceError(getattr(error, "strerror", None) or str(error)) from error
        if not place.is_relative_to(root.place) or os.path.isabs(inner) or ".." in inner.split("/"):
            raise SourceError("it lies outside of the source")
        return place
    raise SourceError("it was not read from a file")


def _descriptor(path: str) -> int | None:
    if path == "/dev/stdin":
        return 0
    match = _DESCRIPTOR.fullmatch(path)
    return int(match[1]) if match else None


def _root(path: str) -> Root:
    if plain_path(path) == STANDARD_INPUT:
        return Root(path, None, "stream")
    try:
        mode = os.stat(path).st_mode
        kind = _kind(mode, path)
        if kind == "stream":
            return Root(path, Path(path).absolute(), kind)
        place = Path(path).resolve(strict=True)
        if kind == "folder":
            os.scandir(place).close()
        else:
            place.open("rb").close()
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return Root(path, place, kind)


def _kind(mode: int, path: str) -> Literal["folder", "file", "stream"]:
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or (stat.S_ISSOCK(mode) and _descriptor(path) is not None):
        return "stream"
    raise ValueError("it is neither a file, a folder nor a pipe")


def _names(roots: Sequence[Root]) -> list[str]:
    """A name for each: its last components, as many as it takes."""
    parts = [_parts(root) for root in roots]
    counts = [1] * len(roots)
    while True:
        names = ["/".join(own[-count:]) for own, count in zip(parts, counts, strict=True)]
        clashing = {
            place
            for one in range(len(roots))
            for other in range(len(roots))
            if one != other and _clash(names[one], names[other], roots[one], roots[other])
            for place in (one, other)
            if counts[place] < len(parts[place])
        }
        if not clashing:
            return names
        for place in clashing:
            counts[place] += 1


def _clash(one: str, other: str, first: Root, second: Root) -> bool:
    """Whether files of the first could have the name of one of the second, and be another file."""
    if one == other:
        return True
    inside = first.place is not None and second.place is not None and second.place.is_relative_to(first.place)
    return first.kind == "folder" and other.startswith(one + "/") and not inside


def _parts(root: Root) -> list[str]:
    if root.place is None:
        return [STDIN_PATH]
    if root.kind == "stream" and _descriptor(root.given) is not None:
        return [f"<pipe {_descriptor(root.given)}>"]
    return [part for part in os.path.abspath(root.given).split("/") if part] or ["root"]
