"""Where the text of a memory comes from: a folder that the operator allowed, or texts that were sent.

Texts that were sent become files of the server's own, so that such a memory is like any other: it is brought up to date
by sending them again, and its citations can be held against them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path, PurePosixPath

from foveal.errors import ParameterError
from foveal.memory.names import check_name
from foveal.server.failures import ApiError
from foveal.server.settings import Settings, beside

TEXTS = "texts"
"""The folder of texts that were sent, beside a store."""


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


def put(folder: Path, texts: Iterable[tuple[str, bytes]]) -> Path:
    """Make `folder` hold these texts and no others. Raises `ParameterError` for a path that leads elsewhere."""
    named = [(plain(path), data) for path, data in texts]
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        for path, data in named:
            target = made / path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if target.exists():
                raise ParameterError(f"two texts have the same path: {path}")
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        remove(folder)
        made.rename(folder)
    except (FileExistsError, NotADirectoryError) as error:
        raise ParameterError(f"{path} cannot be a file and a folder at once") from error
    except OSError as error:  # where they lie is the operator's matter
        raise ParameterError(f"the texts cannot be kept: {error.strerror}") from error
    except ValueError as error:
        raise ParameterError(f"the texts cannot be kept: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


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
