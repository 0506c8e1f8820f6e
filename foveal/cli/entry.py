"""Where the installed script begins. Next to nothing is imported before the signals are ours."""

from __future__ import annotations

import sys

from foveal.process import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_KEEP = ("read", "sync", "train", "eval", "bench")
"""Commands that run long and are stopped, not broken off: any signal ends them with 130."""


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 70 a fault of Foveal, 130 interrupted (by
    another signal than Ctrl-C: 128 and its number)."""
    keeps = any(word in _KEEP for word in sys.argv[1:2])
    signals.take(keeps=keeps)
    from foveal.process.life import run

    run(_load, keeps=keeps)


def _load() -> Callable[[], int]:
    import warnings

    if not sys.warnoptions:  # they are meant for who writes Python
        warnings.simplefilter("ignore")
    from foveal.cli.main import run

    return run
