"""The lines that a citation names, as the source has them now."""

from __future__ import annotations

from foveal.memory.options import ELSEWHERE, SourceOptions
from foveal.sources import SourceError, cited_lines
from foveal.store.errors import ReadError


def lines_of(options: SourceOptions, path: str) -> list[tuple[int, str]]:
    """The lines of the file `path` of a source with their numbers, decoded as reading does.

    A memory's paths may be a stranger's: a file is shown only when it lies below what was read, wherever links lead.
    Raises `ReadError`, saying why it cannot be shown.
    """
    if options.elsewhere:
        raise ReadError(ELSEWHERE)
    try:
        return cited_lines(options.named, path)
    except SourceError as error:
        raise ReadError(str(error)) from error
