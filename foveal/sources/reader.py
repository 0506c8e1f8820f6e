"""Read code bases, files and streams, one document at a time.

In a folder, what rarely changes comes first (`foveal.sources.order`). Reading never fails half-way: what cannot or
should not be read becomes a `Skipped` with its reason. Only a path that does not exist raises, and does so before
anything is read.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from foveal.sources.decode import HEAD_BYTES, binary_reason, decode
from foveal.sources.document import Document, Skipped, SourceError, numbered_lines
from foveal.sources.notebook import is_notebook, notebook_text, without_data
from foveal.sources.order import rarely_changed_first
from foveal.sources.pointer import pointer_reason
from foveal.sources.roots import Root, find_roots, open_stream, place_of
from foveal.sources.walk import Candidate, Filters, too_large, walk
from foveal.sources.wildmatch import Patterns

DEFAULT_MAX_FILE_BYTES = 1 << 20
"""Larger files inside a folder are skipped, unless another limit is given."""
_NO_LIMIT = sys.maxsize


@dataclass(frozen=True)
class Estimate:
    """How much there is to read, from file sizes alone: an upper bound, for a progress bar."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Source:
    """Something to read. Iterating gives `Document` and `Skipped` in order; files are opened one at a time. Which files
    there are is looked up once."""

    roots: tuple[Root, ...]
    filters: Filters
    """`max_file_bytes` 0 stands for the default: none for what was named itself."""
    stdin: BinaryIO | None = None

    def __iter__(self) -> Iterator[Document | Skipped]:
        for entry in self._entries:
            if isinstance(entry, Root):
                yield self._read_stream(entry)
            else:
                yield entry if isinstance(entry, Skipped) else read_file(entry, self._limit(entry.named))

    def estimate(self) -> Estimate:
        """Files and bytes that will be looked at (0, 0 for streams). Opens nothing but ignore files."""
        sizes = [candidate.size for candidate in self.candidates()]
        return Estimate(len(sizes), sum(sizes))

    def candidates(self) -> Iterator[Candidate]:
        """The files that will be looked at, in order (none for streams). Opens nothing but ignore files."""
        yield from (entry for entry in self._entries if isinstance(entry, Candidate))

    @property
    def notes(self) -> tuple[str, ...]:
        """What to tell the person of how the files were found: where git was asked and did not answer."""
        return self._found[1]

    @property
    def _entries(self) -> list[Candidate | Skipped | Root]:
        return self._found[0]

    @cached_property
    def _found(self) -> tuple[list[Candidate | Skipped | Root], tuple[str, ...]]:
        notes: list[str] = []
        entries: list[Candidate | Skipped | Root] = []
        for root in self.roots:
            entries += self._of_root(root, notes)
        return (_once(entries) if len(self.roots) > 1 else entries), tuple(notes)

    def _of_root(self, root: Root, notes: list[str]) -> Sequence[Candidate | Skipped | Root]:
        if root.kind == "stream" or root.place is None:
            return [root]
        if root.kind == "folder":
            filters = replace(self.filters, max_file_bytes=self._limit(named=False))
            found = walk(root.place, filters, notes.append, start=root.start)
            return rarely_changed_first(root.place, found, start=root.start)
        # A file that is named is read whatever ignore files say of it.
        size, limit = root.place.stat().st_size, self._limit(named=True)
        if size > limit:
            return [Skipped(root.start, too_large(size, limit))]
        return [Candidate(root.start, root.place, size, named=True)]

    def _limit(self, named: bool) -> int:
        return self.filters.max_file_bytes or (_NO_LIMIT if named else DEFAULT_MAX_FILE_BYTES)

    def _read_stream(self, root: Root) -> Document | Skipped:
        limit = self._limit(named=True)
        try:
            with open_stream(root, self.stdin) as stream:
                head = stream.read(HEAD_BYTES)
                reason = binary_reason(head)
                if reason:
                    return Skipped(root.start, reason)
                rest = stream.read() if limit == _NO_LIMIT else stream.read(max(0, limit + 1 - len(head)))
        except OSError as error:
            return Skipped(root.start, f"cannot be read: {error.strerror}")
        return _document(root.start, head + rest, limit)


def _once(entries: Sequence[Candidate | Skipped | Root]) -> list[Candidate | Skipped | Root]:
    """Without the files that stand there already: of a folder and one inside it, both named."""
    seen: set[Path] = set()
    kept: list[Candidate | Skipped | Root] = []
    for entry in entries:
        if isinstance(entry, Candidate):
            if entry.absolute in seen:
                continue
            seen.add(entry.absolute)
        kept.append(entry)
    return kept


def read_source(
    path: Path | str | Sequence[Path | str],
    *,
    max_file_bytes: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    use_gitignore: bool = True,
    stdin: BinaryIO | None = None,
) -> Source:
    """The folder or file at `path`, a pipe, standard input for ``"-"``, or several of these one after another.

    `max_file_bytes`: larger files are skipped; the default is 1 MiB in a folder, and no limit for a file that is named
    or for a stream. `include` and `exclude` are globs in gitignore syntax, over the paths that the documents have: only
    what one of `include` matches is read (all, if there is none), and nothing that one of `exclude` matches.
    `use_gitignore`: leave out what git, or ignore files, say. `stdin` stands in for `sys.stdin` (it can be read once
    only). Paths of several: see `foveal.sources.roots`.

    Raises `SourceError` when a path does not exist or cannot be read, or a number or glob makes no sense.
    """
    if max_file_bytes is not None and (type(max_file_bytes) is not int or max_file_bytes < 1):
        raise SourceError(f"max_file_bytes is {max_file_bytes!r}; give a number of bytes from 1 up")
    filters = Filters(
        max_file_bytes or 0, _globs("include", include), _globs("exclude", exclude), use_gitignore=use_gitignore
    )
    paths = [path] if isinstance(path, Path | str) else path
    if not paths:
        raise SourceError("nothing to read is named; give a path")
    return Source(find_roots([str(each) for each in paths]), filters, stdin)


def _globs(name: str, globs: Sequence[str]) -> Patterns | None:
    if isinstance(globs, str):  # its letters would be globs, and "*" matches everything
        raise SourceError(f"{name} is {globs!r}; give a list of globs, such as [{globs!r}]")
    try:
        return Patterns.of_globs(globs) if globs else None
    except ValueError as error:
        raise SourceError(f"{name} holds something that is no glob: {error}") from error


def cited_lines(paths: Sequence[str], path: str) -> list[tuple[int, str]]:
    """The lines of the file `path` of what was read from `paths`, as it is now, decoded as reading does, with their
    numbers. Raises `SourceError`, saying why, when it cannot be read or lies outside of `paths`."""
    place = place_of(find_roots(paths), path)
    try:
        size = place.stat().st_size
    except OSError as error:
        raise SourceError(error.strerror) from error
    found = read_file(Candidate(path, place, size), _NO_LIMIT)
    if isinstance(found, Skipped):
        raise SourceError(found.reason)
    return numbered_lines(found)


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
    pointer = pointer_reason(raw)
    if pointer is not None:
        return Skipped(path, pointer)
    decoded = decode(raw)
    if isinstance(decoded, str):
        return Skipped(path, decoded)
    text, numbers = decoded.text, None
    if is_notebook(path):
        text, numbers = notebook_text(text) or (without_data(text), None)
        if not text:
            return Skipped(path, "a notebook without text")
    return Document(path, text, decoded.encoding, decoded.replaced, numbers) if text else Skipped(path, "empty file")
