"""Where the text of a memory comes from: a folder that the operator allowed, or texts that were sent.

Texts that were sent become files of the server's own, so that such a memory is like any other: it is brought up to date
by sending them again, and its citations can be held against them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath

from foveal.errors import ParameterError
from foveal.memory.names import check_name
from foveal.server.failures import ApiError
from foveal.server.settings import Settings, beside

TEXTS = "texts"
"""The folder of texts that were sent, beside a store."""

Texts = Sequence[tuple[PurePosixPath, bytes]]
"""What files hold, by their paths in a folder."""


def below_a_root(path: str, settings: Settings) -> Path:
    """The file or folder at `path`. Raises `ApiError` unless it lies below an allowed folder, links followed."""
    if not settings.roots:
        raise ApiError(
            "forbidden", "this server reads no paths; its operator can allow a folder with --root", param="path"
        )
    roots = [root.resolve() for root in settings.roots]
    given = Path(path)
    found = (given if given.is_absolute() else roots[0] / given).resolve()
    if not any(found.is_relative_to(root) for root in roots):
        raise ApiError("forbidden", f"{path} is not below a folder that this server may read", param="path")
    if not found.exists():
        raise ApiError("not_found", f"there is no {path}", param="path", detail="path_not_found")
    return found


def folder_of(tenant: str, name: str, settings: Settings) -> Path:
    """Where the texts lie that were sent for a memory. Raises `InvalidName`: the name becomes part of a path."""
    return beside(settings.store) / TEXTS / sha256(tenant.encode()).hexdigest()[:24] / check_name(name)


def checked(texts: Iterable[tuple[str, bytes]]) -> Texts:
    """The texts, with paths that can be files of one folder. Raises `ParameterError` for others."""
    named = [(plain(path), data) for path, data in texts]
    paths = {path for path, _ in named}
    if len(paths) < len(named):
        twice = next(path for place, (path, _) in enumerate(named) if path in {each for each, _ in named[:place]})
        raise ParameterError(f"two texts have the same path: {twice}")
    for path in paths:
        if (above := next((each for each in path.parents if each in paths), None)) is not None:
            raise ParameterError(f"{above} cannot be a file and a folder at once")
    return named


@contextlib.contextmanager
def holding(folder: Path, texts: Texts, is_used: Callable[[], bool]) -> Iterator[Path]:
    """Make `folder` hold these texts and no others. If what is done with it fails, it is as it was before, unless
    `is_used` says that a memory was saved of them. Raises `ParameterError` for texts that cannot be files."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=folder.parent))
    made, before = aside / "made", aside / "before"
    try:
        made.mkdir(mode=0o700)
        _write(made, texts)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(before)
        made.rename(folder)
        try:
            yield folder
        except BaseException:
            if not is_used():
                remove(folder)
                with contextlib.suppress(FileNotFoundError):
                    before.rename(folder)
            raise
    finally:
        remove(aside)


def _write(folder: Path, texts: Texts) -> None:
    try:
        for path, data in texts:
            target = folder / path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
    except (FileExistsError, NotADirectoryError) as error:  # where capitals make no difference
        raise ParameterError(f"{path} names the same file as another text, or its folder") from error
    except OSError as error:  # where they lie is the operator's matter
        raise ParameterError(f"the texts cannot be kept: {error.strerror}") from error
    except ValueError as error:
        raise ParameterError(f"the texts cannot be kept: {error}") from error


def plain(path: str) -> PurePosixPath:
    """A path inside of a folder. Raises `ParameterError` for any other."""
    found = PurePosixPath(path.replace("\\", "/"))
    bad = found.is_absolute() or not found.parts or any(part in ("..", ".git") for part in found.parts)
    if bad or "\0" in path or any(len(part.encode("utf-8", "replace")) > 255 for part in found.parts):
        raise ParameterError(f"{path!r} is no path inside of a folder; give one such as docs/intro.md")
    return found


def remove(folder: Path) -> None:
    """Delete the texts of a memory, if there are any."""
    shutil.rmtree(folder, ignore_errors=True)
