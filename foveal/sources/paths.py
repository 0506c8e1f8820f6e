"""Which paths a source may have: those that lie below it."""

from __future__ import annotations

import os
import re

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_MOST = 4096
"""Bytes of a path, as the systems have it."""


def check_path(path: str) -> None:
    """Raise `ValueError`, saying why, unless `path` names a file below a source: relative, with forward slashes, and no
    way out. A file's name may hold anything else that the system takes, control characters too: who prints it escapes
    it."""
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise ValueError(f"{path!a} is no file's name") from None
    parts = path.split("/")
    if not path or size > _MOST or "\0" in path:
        raise ValueError(f"{path[:80]!a} is no file's name")
    if path.startswith(("/", "\\")) or _DRIVE.match(path):
        raise ValueError(f"{path!a} is not relative to the source")
    if ".." in parts or ".." in path.split("\\"):
        raise ValueError(f"{path!a} leads out of the source")
    if "" in parts or "." in parts:
        raise ValueError(f"{path!a} is not written as the source's own paths are")
