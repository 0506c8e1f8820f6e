"""Loggers of Foveal, ``foveal.<room>.<module>``: silent until somebody adds a handler, as ``--log-level`` does.

They never carry text of a source, a prompt or a reply: names, counts, sizes, times and errors only.
"""

from __future__ import annotations

import logging

_ROOT = "foveal"


def logger(name: str) -> logging.Logger:
    """The logger `name`, the calling module's ``__name__``."""
    root = logging.getLogger(_ROOT)
    if not root.handlers:  # else Python itself shows warnings on stderr
        root.addHandler(logging.NullHandler())
    return logging.getLogger(name)
