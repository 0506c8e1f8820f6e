"""Where Python code comes from: never from the current folder."""

from __future__ import annotations

import os
import sys


def safely() -> None:
    """No Python that this process starts takes modules from the current folder (as ``python -m`` and ``-c`` do)."""
    os.environ["PYTHONSAFEPATH"] = "1"


def forget_current_folder() -> None:
    """Take the first place of ``python -m`` off this process's own path, before anything is imported from there."""
    if sys.flags.safe_path or not sys.path:
        return
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        here = ""
    if sys.path[0] in ("", here):
        del sys.path[0]
