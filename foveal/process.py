"""How a process of Foveal begins and ends: its streams, its signals, where it imports from, and its last words.

It is imported before all else and imports next to nothing, so that a signal in the first milliseconds finds a handler.
`run` is for a process that is ours alone (the command line, a measuring process): it takes the signals, the standard
streams and the end of the process over. Nothing here is done when Foveal is used as a library.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import Any, NoReturn

FAILED = 1
"""Exit code when the work could not be done. Usage errors exit with 2."""
FAULT = 70
"""Exit code of a fault in Foveal itself (EX_SOFTWARE of sysexits.h)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, and after any signal to a command that goes on when it is given again."""
TRACEBACK = "FOVEAL_TRACEBACK"
"""Set in the environment, a failure shows its traceback before its line."""


# ---------------------------------------------------------------------- the standard streams


class OutputFailed(OSError):
    """Standard output cannot be written to."""


class OutputClosed(OutputFailed, BrokenPipeError):
    """The reader of standard output went away (``foveal ls | head -1``)."""


class _Output(io.FileIO):
    """Standard output. What cannot be written is an `OutputFailed`, which is told from the store's own errors."""

    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                failure = OutputClosed if error.errno == errno.EPIPE else OutputFailed
                raise failure(error.errno, _why_not_written(error)) from None
            if written is not None:
                return written
            _wait_for(self.fileno())  # somebody who shares the stream made it non-blocking


class _Notes(io.FileIO):
    """Standard error. What cannot be written is dropped: nobody is there to be told."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


class _Input(io.FileIO):
    """Standard input that is closed."""

    def readinto(self, buffer: Any) -> int:
        raise OSError(errno.EBADF, "standard input is closed")

    def readall(self) -> bytes:
        raise OSError(errno.EBADF, "standard input is closed")

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.EBADF, "standard input is closed")


def _why_not_written(error: OSError) -> str:
    why = "standard output is closed" if error.errno == errno.EBADF else os.strerror(error.errno or errno.EIO)
    return f"cannot write the output: {why}"


def _wait_for(descriptor: int) -> None:
    import select

    select.select([], [descriptor], [])


def _take_streams() -> None:
    """Make 0, 1 and 2 ours: a number that is closed would go to the next file opened, which may be the store's.

    Standard input then fails when it is read, standard output when it is written, and standard error is silent.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the lowest free number is this one
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY if number != 1 else os.O_RDONLY), True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Input(0, "r", closefd=False)))
    # What the encoding lacks becomes an escape: a name must not end the command that lists it.
    sys.stdout = sys.__stdout__ = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = sys.__stderr__ = _text(_Notes(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _text(raw: io.FileIO, before: Any, line_buffering: bool = False) -> io.TextIOWrapper:
    """A text stream over `raw`, encoded as `before` was."""
    encoding = before.encoding if before is not None else "utf-8"
    lines = line_buffering or (before is not None and before.line_buffering)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", newline=None, line_buffering=lines
    )


def _close_output() -> OSError | None:
    """Write out what is left for standard output; what kept it from being written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        return error
    return None


def _drop_output() -> None:
    """What was not written shall not be tried again at the end."""
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BytesIO())


def say(line: str) -> None:
    """One line on standard error, with as little as can be: it may be memory that there is none of."""
    try:
        os.write(2, f"foveal: {line}\n".encode("utf-8", "backslashreplace"))
    except (OSError, MemoryError):
        pass


# ---------------------------------------------------------------------- signals


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.02


class _State:
    """Of this process."""

    working = False
    """Whether there is work that wants to clean up behind itself. Before and after, a signal ends the process at once."""
    goes_on = False
    """Whether the same command goes on where it was stopped; then any signal ends it with 130."""
    signal: int | None = None
    """The first signal that asked for the end."""
    code = FAULT
    """What the process exits with."""


def _stop_code(number: int) -> int:
    return INTERRUPTED if _State.goes_on else 128 + number


def _take_signals() -> None:
    """What was ignored when we began stays so: the commands of ``nohup`` and of a shell's background."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _once_more)


def _on_signal(number: int, frame: FrameType | None) -> None:
    first = _State.signal is None
    if first:
        _State.signal = number
    if not _State.working:
        os._exit(_stop_code(_State.signal or number))
    # An extension module that is stopped in its initialisation may abort the process.
    if first and _is_importing(frame):
        _raise_later()
        return
    raise Stopped


def _once_more(number: int, frame: FrameType | None) -> None:
    if _State.working and _is_importing(frame):
        _raise_later()
    elif _State.working and _State.signal is not None:
        raise Stopped


def _raise_later() -> None:
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _unraisable(told: Any) -> None:
    """Where an exception cannot go up (in ``__del__``), an interruption is raised again soon; others are dropped."""
    if isinstance(told.exc_value, KeyboardInterrupt):
        _raise_later()
    elif os.environ.get(TRACEBACK):
        sys.__unraisablehook__(told)


def shielded(start: Callable[[], Any]) -> Any:
    """`start()`, which starts a process that Ctrl-C shall not reach: its parent hears it and tells it to end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process has its parent's mask
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------- where code comes from


def import_safely() -> None:
    """No Python that this process starts takes modules from the current folder (as ``python -m`` and ``-c`` do)."""
    os.environ["PYTHONSAFEPATH"] = "1"


def forget_current_folder() -> None:
    """Take the first place of ``python -m`` and ``-c`` off this process's own path, before anything comes from there."""
    if sys.flags.safe_path or not sys.path:
        return
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        here = ""
    if sys.path[0] in ("", here):
        del sys.path[0]


# ---------------------------------------------------------------------- what went wrong


def reason(error: BaseException) -> str | None:
    """What went wrong, in one line for the person; None when `error` is not one that is expected: a fault of ours.

    Expected are the exception classes that Foveal defines, the system's refusals, and that memory, descriptors or
    threads ran out, in whatever form a library says so.
    """
    if isinstance(error, OSError):
        return _system(error)
    chain = list(_chain(error))
    if any(isinstance(each, MemoryError) for each in chain):
        return f"not enough memory{_colon(error)}"
    if type(error).__module__.partition(".")[0] == "foveal":
        return str(error) or type(error).__name__
    for each in chain:
        if isinstance(each, OSError) and isinstance(error, ImportError | SystemError):
            return _system(each)
    return _of_library(error)


def _of_library(error: BaseException) -> str | None:
    """What other packages say when something ran out or is not there."""
    text, home = str(error), type(error).__module__.partition(".")[0]
    if any(words in text for words in _NO_MEMORY):
        return f"not enough memory: {text}"
    if "can't start new thread" in text or "thread creation failed" in text.lower():
        return "cannot start a thread; allow more processes (ulimit -u) or more memory (ulimit -v)"
    if isinstance(error, ImportError):
        return f"cannot load what is needed: {text}"
    if home == "sqlite3" and type(error).__name__ == "OperationalError":
        return f"the store's index cannot be used now: {text}"
    if isinstance(error, ValueError) and "embedded null" in text:
        return "a path with a NUL byte in it cannot be opened"
    if isinstance(error, RecursionError):
        return f"nested too deeply: {text}"
    return None


_NO_MEMORY = (
    "can't allocate memory", "annot allocate memory", "failed to map segment", "std::bad_alloc", "out of memory",
    "ot enough memory", "nable to allocate",
)  # fmt: skip


def _system(error: OSError) -> str:
    """System errors in the form ``file: what happened``."""
    if not error.strerror:
        return str(error) or type(error).__name__
    named = "" if error.filename is None or isinstance(error, OutputFailed) else f"{os.fsdecode(error.filename)}: "
    return f"{named}{error.strerror}{_HINTS.get(error.errno or 0, '')}"


_HINTS = {
    errno.EMFILE: " (this process may open no more; raise its limit, ulimit -n)",
    errno.ENFILE: " (the whole system may open no more)",
}


def _colon(error: BaseException) -> str:
    text = str(error)
    return f": {text}" if text else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what led to it."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def fault(error: BaseException) -> str:
    """The line for an exception that nobody expected."""
    named = f"{type(error).__name__}{_colon(error)}"
    return f"this is a fault of Foveal, please report it: {named} ({TRACEBACK}=1 shows where)"


def show_traceback(error: BaseException) -> None:
    """Print it, if the person asked for it."""
    if os.environ.get(TRACEBACK):
        import traceback

        traceback.print_exception(error)


# ---------------------------------------------------------------------- the whole of it


def run(load: Callable[[], Callable[[], int]], *, goes_on: bool = False) -> NoReturn:
    """The life of this process: `load` imports what it needs and returns the work, which returns the exit code.

    Until the work begins a signal ends the process at once; then it is raised as `Stopped`. `goes_on` says that the
    same command, given again, goes on where this one was stopped.
    """
    _State.goes_on = goes_on
    _take_signals()
    try:
        _take_streams()
    except OSError as error:
        say(_system(error))
        os._exit(FAILED)
    import_safely()
    # Before torch is loaded: its threads shall sleep while they wait for each other. The default, to spin, made reading
    # ten times slower on a machine whose cores had other work too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.unraisablehook = _unraisable
    atexit.register(_leave)  # first in, last out
    _State.code = _worked(load)
    sys.exit(_State.code)


def _worked(load: Callable[[], Callable[[], int]]) -> int:
    """The exit code. Nothing of an exception is left behind: the frames it holds would be taken apart too late, when
    torch cannot free their tensors any more."""
    try:
        code = _code(load)
        _State.working = False
        failed = _close_output()
    except BaseException as error:  # a signal between two lines
        _State.working = False
        return _failed(error)
    if failed is not None:
        return _failed(failed)
    stopped = code == INTERRUPTED and _State.signal is not None
    return _stop_code(_State.signal or 0) if stopped else code


def _code(load: Callable[[], Callable[[], int]]) -> int:
    try:
        work = load()
        _State.working = True
        return work()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILED if leaving.code else 0
    except BaseException as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Say what went wrong; the exit code for it."""
    if _State.signal is not None:
        return _stop_code(_State.signal)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OutputClosed):
        _drop_output()
        return FAILED
    show_traceback(error)
    line = reason(error)
    if isinstance(error, OutputFailed):
        _drop_output()
    say(one_line(fault(error) if line is None else line))
    return FAULT if line is None else FAILED


def _leave() -> None:
    """The end, after all other exit handlers. The interpreter is not taken apart: there is nothing left to do, and what
    torch's and our own threads do meanwhile can abort the process."""
    _State.working = False
    _close_output()
    os._exit(_State.code)


# ---------------------------------------------------------------------- text for a terminal


def printable(text: str, keep: str = "") -> str:
    r"""`text` as a terminal may be given it: what would steer it, or hide or reorder what is seen, becomes an escape.

    That are control characters (newline and tab too, unless `keep` has them), marks of direction, invisible format
    characters, and the lone surrogates that stand for bytes in file names: ``\n``, ``\x1b``, ``\u202e``, ``\udcff``.
    """
    if text.isascii() and text.isprintable():
        return text
    import unicodedata

    def shown(place: int, character: str) -> str:
        if character in keep or unicodedata.category(character) not in _HIDDEN or _joins(text, place):
            return character
        return character.encode("unicode_escape").decode("ascii")

    return "".join(shown(place, character) for place, character in enumerate(text))


_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of Unicode: control, format, surrogate, and the separators of lines and paragraphs."""


def _joins(text: str, place: int) -> bool:
    """Whether a joiner stands there between two letters of a script that is written with it (or two emoji)."""
    if text[place] not in "\u200c\u200d" or not 0 < place < len(text) - 1:
        return False
    return text[place - 1] > "\u00ff" and text[place + 1] > "\u00ff" and text[place + 1] not in "\u200c\u200d"


def one_line(text: str) -> str:
    """The words of `text`, one blank between them, as `printable`."""
    return printable(" ".join(text.split()))
