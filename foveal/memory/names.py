"""Where memories live: one private folder, one sub-folder for each name.

The root is an explicit argument, else the environment variable ``FOVEAL_STORE``, else ``~/.local/share/foveal``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.memory.errors import InvalidName, MemoryNotFound, StoreError
from foveal.memory.files import read_manifest, recover, remove_folder

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SET_ASIDE = re.compile(r"\.(?P<name>.+)\.old-[0-9a-f]{12}")


@dataclass(frozen=True)
class MemoryInfo:
    """What a memory's manifest says, without loading it. `problem` is set, and `facts` empty, when it is damaged."""

    name: str
    path: Path
    facts: dict[str, Any]
    problem: str | None = None


def store_root(root: str | Path | None = None) -> Path:
    """The folder of all memories; not made before the first save."""
    chosen = root or os.environ.get("FOVEAL_STORE") or Path("~/.local/share/foveal")
    return Path(chosen).expanduser()


def check_name(name: str) -> str:
    """`name`, when it is a plain name. Raises `InvalidName`."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{name!r} is not a name for a memory: use 1 to 100 letters, digits, '.', '_' or '-', not beginning with "
            "'.' or '-'"
        )
    return name


def memory_path(name: str, root: str | Path | None = None) -> Path:
    """The folder of the memory called `name`, whether it exists or not. Raises `InvalidName`."""
    return store_root(root) / check_name(name)


def list_memories(root: str | Path | None = None) -> list[MemoryInfo]:
    """All memories, by name; damaged ones too, with their problem. Manifests are verified, other files are not."""
    folder = store_root(root)
    if not folder.is_dir():
        return []
    for entry in list(folder.iterdir()):
        if match := _SET_ASIDE.fullmatch(entry.name):
            recover(folder / match["name"])
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name))
    return [memory_info(name, root) for name in names]


def memory_info(name: str, root: str | Path | None = None) -> MemoryInfo:
    """What is known of one memory without loading it. Raises `InvalidName` or `MemoryNotFound`."""
    path = memory_path(name, root)
    try:
        return MemoryInfo(name, path, read_manifest(path))
    except MemoryNotFound:
        raise
    except StoreError as error:
        return MemoryInfo(name, path, {}, str(error))


def delete_memory(name: str, root: str | Path | None = None) -> None:
    """Delete a memory. Raises `InvalidName`, `MemoryNotFound`, or `StoreError` when the disk refuses."""
    path = memory_path(name, root)
    recover(path)
    if path.is_symlink() or not path.is_dir():
        raise MemoryNotFound(f"there is no memory {name!r} in {path.parent}; `foveal ls` lists those there are")
    remove_folder(path)
