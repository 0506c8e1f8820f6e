"""Where the installed script begins. Only `foveal.process` is imported before `main` has taken the signals over."""

from __future__ import annotations

import sys

from foveal import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_GO_ON = ("read", "sync", "train", "eval", "bench")
"""Commands that keep what was done when they are stopped; any signal ends them with 130."""


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 70 a fault of Foveal, 130 interrupted (by
    another signal: 128 and its number)."""
    process.run(_load, goes_on=sys.argv[1:2] != [] and sys.argv[1] in _GO_ON)


def _load() -> Callable[[], int]:
    import warnings

    if not sys.warnoptions:  # meant for who writes Python
        warnings.simplefilter("ignore")
    from foveal.cli.main import run

    return run
