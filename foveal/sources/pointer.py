"""Files that stand for others: the pointers that Git LFS leaves in a work tree."""

from __future__ import annotations

import re

_LFS = re.compile(
    rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v\d+\n(?:ext-\d+-[^\n]*\n)*"
    rb"oid sha256:[0-9a-f]{64}\nsize (\d+)\n?"
)
_MOST = 1024
"""Bytes that a pointer has at most, by its specification."""


def pointer_reason(raw: bytes) -> str | None:
    """Why the file that holds `raw` has nothing to read, or None if it is no pointer."""
    match = _LFS.fullmatch(raw) if len(raw) <= _MOST else None
    return match and f"a Git LFS pointer: its content ({int(match[1]):,} bytes) is not here (git lfs pull)"
