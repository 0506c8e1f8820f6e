"""Read a code base, a file or standard input, one document at a time.

What is special here: in a folder, what rarely changes comes first (`foveal.sources.order`). Reading never fails
half-way: what cannot or should not be read becomes a `Skipped` with its reason; only a path that does not exist raises,
and does so before anything is read.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from foveal.sources.decode import HEAD_BYTES, binary_reason, decode
from foveal.sources.document import Document, Skipped
from foveal.sources.ignore import compile_patterns
from foveal.sources.order import rarely_changed_first
from foveal.sources.walk import Candidate, Filters, too_large, walk

DEFAULT_MAX_FILE_BYTES = 1 << 20
"""Larger files inside a folder are skipped, unless another limit is given."""

STANDARD_INPUT = "-"
"""What is given as the path of standard input."""
STDIN_PATH = "<stdin>"
_NO_LIMIT = sys.maxsize


class SourceError(ValueError):
    """What was asked to be read does not exist or cannot be read at all."""


@dataclass(frozen=True)
class Estimate:
    """How much there is to read, from file sizes alone: an upper bound, for a progress bar."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Source:
    """Something to read. Iterating gives `Document` and `Skipped` in order; files are opened one at a time."""

    root: Path | None
    """The folder or file, or None for standard input."""
    filters: Filters
    name: str = ""
    """What a single file is called in its header."""
    stdin: BinaryIO | None = None

    def __iter__(self) -> Iterator[Document | Skipped]:
        if self.root is None:
            yield self._read_stdin()
            return
        for entry in self._ordered():
            yield entry if isinstance(entry, Skipped) else read_file(entry, self.filters.max_file_bytes)

    def estimate(self) -> Estimate:
        """Files and bytes that will be looked at (0, 0 for standard input). Opens nothing but ignore files."""
        sizes = [candidate.size for candidate in self.candidates()]
        return Estimate(len(sizes), sum(sizes))

    def _ordered(self) -> Iterable[Candidate | Skipped]:
        assert self.root is not None
        return rarely_changed_first(self.root, self._entries()) if self.root.is_dir() else self._entries()

    def candidates(self) -> Iterator[Candidate]:
        """The files that will be looked at, in order (none for standard input). Opens nothing but ignore files."""
        if self.root is not None:
            yield from (entry for entry in self._entries() if isinstance(entry, Candidate))

    def _entries(self) -> Iterator[Candidate | Skipped]:
        assert self.root is not None
        if self.root.is_dir():
            return walk(self.root, self.filters)
        # A file that is named is read whatever ignore files say of it.
        size, limit = self.root.stat().st_size, self.filters.max_file_bytes
        large = size > limit
        return iter([Skipped(self.name, too_large(size, limit)) if large else Candidate(self.name, self.root, size)])

    def _read_stdin(self) -> Document | Skipped:
        stream = self.stdin or sys.stdin.buffer
        limit = self.filters.max_file_bytes
        raw = stream.read() if limit == _NO_LIMIT else stream.read(limit + 1)
        return _document(self.name, raw, limit)


def read_source(
    path: Path | str,
    *,
    max_file_bytes: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    use_gitignore: bool = True,
    stdin: BinaryIO | None = None,
) -> Source:
    """The folder or file at `path`, or standard input for ``"-"``.

    `max_file_bytes`: larger files are skipped; the default is 1 MiB in a folder, and no limit for a file that is named
    or for standard input. `include` and `exclude` are globs in gitignore syntax, seen from the folder: only what one of
    `include` matches is read (all, if there is none), and nothing that one of `exclude` matches. `stdin` stands in for
    `sys.stdin` (it can be read once only).

    Raises `SourceError` when `path` does not exist, is neither file nor folder, or a number or glob makes no sense.
    """
    if max_file_bytes is not None and max_file_bytes < 1:
        raise SourceError(f"max_file_bytes is {max_file_bytes}; give a number of bytes from 1 up")
    globs = {"include": include, "exclude": exclude}
    compiled = {name: compile_patterns(list(patterns)) if patterns else None for name, patterns in globs.items()}
    for name, patterns in globs.items():
        spec = compiled[name]
        if spec is not None and len(spec.patterns) != len(patterns):
            raise SourceError(f"{name} holds something that is no glob: {', '.join(map(repr, patterns))}")
    filters = Filters(_NO_LIMIT if max_file_bytes is None else max_file_bytes, **compiled, use_gitignore=use_gitignore)
    if str(path) == STANDARD_INPUT:
        return Source(None, filters, STDIN_PATH, stdin)
    root = _existing(Path(path))
    if root.is_dir() and max_file_bytes is None:
        filters = replace(filters, max_file_bytes=DEFAULT_MAX_FILE_BYTES)
    return Source(root, filters, Path(path).name)


def _existing(path: Path) -> Path:
    try:
        root = path.resolve(strict=True)
        mode = root.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(root).close()
        elif stat.S_ISREG(mode):
            root.open("rb").close()
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise SourceError(f"cannot read {path}: it is neither a file nor a folder")
    return root


def read_file(candidate: Candidate, max_file_bytes: int) -> Document | Skipped:
    """The document in a file, or why there is none. Opens without following links or waiting (for a pipe that took
    the file's place, say), and reads no further than the first kilobytes of a binary."""
    try:
        descriptor = os.open(candidate.absolute, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Skipped(candidate.path, "not a regular file any more")
            head = stream.read(HEAD_BYTES)
            reason = binary_reason(head)
            if reason:
                return Skipped(candidate.path, reason)
            rest = stream.read() if max_file_bytes == _NO_LIMIT else stream.read(max(0, max_file_bytes + 1 - len(head)))
    except OSError as error:
        return Skipped(candidate.path, f"cannot be read: {error.strerror}")
    return _document(candidate.path, head + rest, max_file_bytes)


def _document(path: str, raw: bytes, max_file_bytes: int) -> Document | Skipped:
    if len(raw) > max_file_bytes:
        return Skipped(path, too_large(len(raw), max_file_bytes))
    decoded = decode(raw)
    if isinstance(decoded, str):
        return Skipped(path, decoded)
    if not decoded.text:
        return Skipped(path, "empty file")
    return Document(path, decoded.text, decoded.encoding, decoded.replaced)
