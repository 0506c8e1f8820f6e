"""Folders that are whole or not there.

What is special here: a folder is written beside its place under a temporary name, every file and the folder itself are
synced to the disk, and only then it gets its name, so that a crash at any moment leaves the old one or the new one. Its
``manifest.json`` lists size and BLAKE2b checksum of every other file and carries a checksum of itself; reading compares
all of them before anything is used. Folders are 0700 and files 0600: what was read is the user's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foveal.memory.errors import CorruptMemory, MemoryNotFound, StoreError

MANIFEST = "manifest.json"
_DIGEST_BYTES = 32
_BLOCK = 1 << 20
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a temporary folder belongs to nobody."""


def write_folder(target: Path, files: Mapping[str, Iterable[bytes | memoryview]], facts: Mapping[str, Any]) -> None:
    """Write `files` (name -> pieces of its content) and a manifest holding `facts`, then name the folder `target`.

    A folder that is there already is replaced in one step. Raises `StoreError` when the disk refuses; then `target`
    is what it was before.
    """
    temporary = target.with_name(f".{target.name}.new-{secrets.token_hex(6)}")
    try:
        make_private(target.parent)
        temporary.mkdir(mode=0o700)
        listed = {name: _write_file(temporary / name, pieces) for name, pieces in files.items()}
        _write_file(temporary / MANIFEST, [_manifest_bytes({**facts, "files": listed})])
        _sync_folder(temporary)
        _put_in_place(temporary, target)
        _sweep(target)
    except OSError as error:
        raise StoreError(f"cannot write memory {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The verified manifest of `folder`. Raises `MemoryNotFound`, or `CorruptMemory` naming the manifest."""
    recover(folder)
    if not folder.is_dir():
        raise MemoryNotFound(f"there is no memory at {folder}; `foveal ls` lists those there are")
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = json.loads(data)
        honest = isinstance(manifest, dict) and _manifest_bytes(manifest) == data
    except FileNotFoundError as error:
        raise CorruptMemory(MANIFEST, "it is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptMemory(MANIFEST, f"it cannot be read ({error})") from error
    if not honest:
        raise CorruptMemory(MANIFEST, "its checksum is wrong")
    return manifest


def read_files(folder: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> dict[str, bytearray]:
    """The verified contents of the files `names`. Raises `CorruptMemory` naming the first bad file."""
    return {name: _read_file(folder / name, manifest.get("files", {}).get(name)) for name in names}


def remove_folder(target: Path) -> None:
    """Delete `target`: it loses its name first, so that a crash leaves no half of it. Raises `StoreError`."""
    doomed = target.with_name(f".{target.name}.gone-{secrets.token_hex(6)}")
    try:
        target.rename(doomed)
        _sync_folder(target.parent)
        shutil.rmtree(doomed)
    except OSError as error:
        raise StoreError(f"cannot delete memory {target}: {error}") from error


def recover(target: Path) -> None:
    """Finish what a crash interrupted: when only the set-aside old folder exists, give it its name back."""
    if target.exists() or not target.parent.is_dir():
        return
    for old in _left_over(target, "old"):
        with contextlib.suppress(OSError):  # another process recovered it first
            old.rename(target)
            return


def _left_over(target: Path, purpose: str) -> list[Path]:
    """Folders that an interrupted save or delete of `target` left beside it."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{purpose}-[0-9a-f]{{12}}")
    return sorted(path for path in target.parent.iterdir() if pattern.fullmatch(path.name))


def _sweep(target: Path) -> None:
    """Delete what crashed saves of `target` left, unless it is so young that another process may be at work on it."""
    for purpose in ("new", "gone", "old"):
        for path in _left_over(target, purpose):
            with contextlib.suppress(OSError):  # gone already
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                    shutil.rmtree(path, ignore_errors=True)


def make_private(folder: Path) -> None:
    """Make `folder` and its missing parents with mode 0700."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


# ---------------------------------------------------------------------- bytes


def _manifest_bytes(facts: Mapping[str, Any]) -> bytes:
    """Canonical bytes, with a checksum over everything else. What is read must be exactly these."""
    bare = {key: value for key, value in facts.items() if key != "checksum"}
    checksum = hashlib.blake2b(_json(bare), digest_size=_DIGEST_BYTES).hexdigest()
    return _json({**bare, "checksum": checksum})


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode("ascii")


def _write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and sync one file; returns its entry in the manifest."""
    digest, size = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "blake2b": digest.hexdigest()}


def _read_file(path: Path, entry: object) -> bytearray:
    match entry:
        case {"bytes": int(size), "blake2b": str(expected)}:
            pass
        case _:
            raise CorruptMemory(path.name, "the manifest does not list it")
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        found = path.stat().st_size
        if found != size:
            raise CorruptMemory(path.name, f"it has {found} bytes instead of {size}")
        data = bytearray(size)
        view = memoryview(data)
        with open(path, "rb", buffering=0) as file:
            done = 0
            while done < size and (count := file.readinto(view[done : done + _BLOCK])):
                digest.update(view[done : done + count])
                done += count
    except FileNotFoundError as error:
        raise CorruptMemory(path.name, "it is missing") from error
    except OSError as error:
        raise CorruptMemory(path.name, f"it cannot be read ({error})") from error
    if digest.hexdigest() != expected:
        raise CorruptMemory(path.name, "its checksum is wrong")
    return data


# ---------------------------------------------------------------------- names


def _put_in_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
    elif not _exchange(temporary, target):
        old = target.with_name(f".{target.name}.old-{secrets.token_hex(6)}")
        target.rename(old)  # a crash right here is mended by `recover`
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically where the system can (Linux renameat2); the caller then deletes what is now `one`."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP):  # this file system cannot
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
