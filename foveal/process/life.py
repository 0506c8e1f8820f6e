"""The life of a process of ours: `run`."""

from __future__ import annotations

import atexit
import os
import sys

from foveal.process import imports, signals, space, streams
from foveal.process.failures import FAILED, FAULT, TRACEBACK, fault, of_system, reason, show_traceback
from foveal.process.text import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


class _End:
    code = FAULT
    """What the process exits with."""


def run(load: Callable[[], Callable[[], int]], *, keeps: bool = False) -> NoReturn:
    """The life of this process: `load` imports what it needs and returns the work, which returns the exit code.

    Until the work begins a signal ends the process at once; then it is raised as `signals.Stopped`. `keeps` says that
    what was done is kept when it is stopped, and any signal ends it with 130.
    """
    signals.take(keeps=keeps)
    try:
        streams.take()
    except OSError as error:
        streams.say(of_system(error))
        os._exit(FAILED)
    imports.safely()
    space.guard_imports()
    _tame_libraries()
    sys.unraisablehook = _unraisable
    atexit.register(_leave)  # first in, last out
    _End.code = _worked(load)
    sys.exit(_End.code)


def _tame_libraries() -> None:
    """Settings of torch's and numpy's libraries, which read them when they are loaded."""
    # Threads shall sleep while they wait for each other. The default, to spin, made reading ten times slower on a
    # machine whose cores had other work too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # numpy multiplies nothing large here, and its library ends the process when it cannot start its threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not _threads_can_start():  # torch's and tokenizers' would end the process too
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _threads_can_start() -> bool:
    """Whether as many can as there are cores; asked only where the limit of processes is small."""
    import _thread
    import resource

    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most == resource.RLIM_INFINITY or most > _MANY_PROCESSES:
        return True
    gate = _thread.allocate_lock()
    gate.acquire()
    try:
        for _ in range(os.cpu_count() or 1):
            _thread.start_new_thread(_pass, (gate,))
    except RuntimeError:
        return False
    finally:
        gate.release()
    return True


def _pass(gate: Any) -> None:
    with gate:
        pass


_MANY_PROCESSES = 4096


def _worked(load: Callable[[], Callable[[], int]]) -> int:
    """The exit code. Nothing of an exception is left behind: the frames it holds would be taken apart too late, when
    torch cannot free their tensors any more."""
    try:
        code = _code(load)
        signals.raise_them(False)
        failed = streams.close_output()
    except BaseException as error:  # a signal between two lines
        signals.raise_them(False)
        return _failed(error)
    if failed is not None and code == 0:
        return _failed(failed)
    return signals.exit_code() or code if code == signals.INTERRUPTED else code


def _code(load: Callable[[], Callable[[], int]]) -> int:
    try:
        work = load()
        signals.raise_them(True)
        return work()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILED if leaving.code else 0
    except BaseException as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Say what went wrong; the exit code for it."""
    if (stopped := signals.exit_code()) is not None:
        return stopped
    if isinstance(error, KeyboardInterrupt):
        return signals.INTERRUPTED
    if isinstance(error, streams.OutputFailed):
        streams.drop_output()
    if isinstance(error, streams.OutputClosed):
        return FAILED
    show_traceback(error)
    line = reason(error)
    streams.say(fault(error) if line is None else one_line(line))
    return FAULT if line is None else FAILED


def _leave() -> None:
    """The end, after all other exit handlers. The interpreter is not taken apart: there is nothing left to do, and what
    torch's and our own threads do meanwhile can abort the process."""
    signals.raise_them(False)
    streams.close_output()
    os._exit(_End.code)


def _unraisable(told: Any) -> None:
    """Where an exception cannot go up (in ``__del__``), an interruption is raised again soon; others are dropped."""
    if isinstance(told.exc_value, KeyboardInterrupt):
        signals.raise_later()
    elif os.environ.get(TRACEBACK):
        sys.__unraisablehook__(told)
