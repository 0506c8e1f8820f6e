"""Files that stand for others: the pointers that Git LFS leaves in a work tree."""

from __future__ import annotations

import re

_END = rb"[ \t]*(?:\r\n|\r|\n)"
_MORE = rb"(?:[a-z0-9.-]+ [^\r\n]*" + _END + rb")*?"
_VERSION = rb"(?:\xef\xbb\xbf)?version https?://[a-z0-9.-]+/spec/(?:v\d+|latest)" + _END
_LFS = re.compile(_VERSION + _MORE + rb"oid sha256:[0-9a-f]{64}" + _END + _MORE + rb"size (\d{1,20})[ \t\r\n]*")
"""As git-lfs writes them, and as editors and settings of line ends may leave them; with keys of later versions."""
_MOST = 1024
"""Bytes that a pointer has at most, by its specification."""


def pointer_reason(raw: bytes) -> str | None:
    """Why the file that holds `raw` has nothing to read, or None if it is no pointer."""
    match = _LFS.fullmatch(raw) if len(raw) <= _MOST else None
    return match and f"a Git LFS pointer: its content ({int(match[1]):,} bytes) is not here (git lfs pull)"
