"""The file that a citation names, when it is safe to open.

A memory's paths may be a stranger's. A file is shown only when it lies below the source that the person read, or said
the memory is of, wherever links lead.
"""

from __future__ import annotations

from pathlib import Path

from foveal.memory.errors import ReadError
from foveal.memory.reading import ELSEWHERE, SourceOptions
from foveal.sources import STANDARD_INPUT
from foveal.sources.paths import check_path


def cited_file(options: SourceOptions, path: str) -> Path:
    """Where the file `path` of a source lies, all links followed. Raises `ReadError`, saying why it cannot be shown."""
    if options.elsewhere:
        raise ReadError(ELSEWHERE)
    if options.source == STANDARD_INPUT:
        raise ReadError("it was not read from a file")
    try:
        check_path(path)
        source = Path(options.source).resolve(strict=True)
        file = (source / path).resolve(strict=True) if source.is_dir() else source
        inside, regular = file.is_relative_to(source), file.is_file()
    except OSError as error:
        raise ReadError(error.strerror or str(error)) from error
    except (ValueError, RuntimeError) as error:  # a path that may not be; links in a circle
        raise ReadError(str(error)) from error
    if not inside:
        raise ReadError("it lies outside of the source")
    if not regular:
        raise ReadError("it is no file")
    return file
