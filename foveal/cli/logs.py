"""The loggers of Foveal (``foveal.store.gc`` and so on): silent, unless ``--log-level`` or ``FOVEAL_LOG`` asks."""

from __future__ import annotations

import logging
import sys

from foveal.process.text import printable

LEVELS = ("debug", "info", "warning", "error")


class _OnStderr(logging.Handler):
    """Lines on stderr as it is at the time, shown as `printable`; stderr that cannot be written to is no failure."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(printable(self.format(record), "\n") + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def show_logs(level: str | None) -> None:
    """From now on what Foveal logs from `level` on goes to stderr; None: nothing does."""
    logger = logging.getLogger("foveal")
    for handler in [each for each in logger.handlers if isinstance(each, _OnStderr)]:
        logger.removeHandler(handler)
    if level is None:
        if not logger.handlers:  # else Python shows warnings itself
            logger.addHandler(logging.NullHandler())
        return
    handler = _OnStderr()
    handler.setFormatter(logging.Formatter("{asctime} {levelname} {name}: {message}", style="{"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
