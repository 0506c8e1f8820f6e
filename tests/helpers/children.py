"""Forked processes of a test: they never run the rest of the suite, and never hang without saying where."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable

PATIENCE = 200
"""Seconds that a child may take. The suite has threads, so a fork may find a lock that nobody gives back."""


def forked(work: Callable[[], object], code: int = 0) -> int:
    """Run `work` in a forked process, which then ends with `code`, or with 1 when `work` failed; its traceback goes to
    standard error. Returns the process."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        faulthandler.dump_traceback_later(PATIENCE, exit=True, file=sys.__stderr__ or 2)
        work()
        status = code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Wait for its end: the exit code, or a signal's number, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(child: int) -> None:
    """Kill it, and wait until it is gone."""
    os.kill(child, 9)
    os.waitpid(child, 0)
