"""Where the installed script begins. Next to nothing is imported before the signals are ours."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes a while to be imported
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

_KEEP = ("read", "sync", "train", "eval", "bench", "convert")
"""Commands that run long and are stopped, not broken off: any signal ends them with 130."""


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 70 a fault of Foveal, 130 interrupted (by
    another signal than Ctrl-C: 128 and its number)."""
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(number) not in (_signal.SIG_IGN, None):
            _signal.signal(number, _end_at_once)
    from foveal.process.life import run

    run(_load, keeps=_keeps())


def _keeps() -> bool:
    return _command(sys.argv[1:]) in _KEEP


def _end_at_once(number: int, frame: object) -> NoReturn:
    """Until `foveal.process.life.run` takes the signals."""
    os._exit(130 if _keeps() else 128 + number)


def _command(words: Sequence[str]) -> str | None:
    """The command that a command line names, behind options of `foveal` itself."""
    rest = iter(words)
    for word in rest:
        if word == "--log-level":
            next(rest, None)  # its value
        elif not word.startswith("-"):
            return word
    return None


def _load() -> Callable[[], int]:
    import warnings

    if not sys.warnoptions:  # they are meant for who writes Python
        warnings.simplefilter("ignore")
    from foveal.cli.main import run

    return run
