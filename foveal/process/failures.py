"""What went wrong, in one line."""

from __future__ import annotations

import errno
import os

from foveal.errors import FovealError
from foveal.process.streams import OutputFailed
from foveal.process.text import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = 1
"""Exit code when the work could not be done. Usage errors exit with 2."""
FAULT = 70
"""Exit code of a fault in Foveal itself (EX_SOFTWARE of sysexits.h)."""
TRACEBACK = "FOVEAL_TRACEBACK"
"""Set in the environment, a failure shows its traceback before its line."""


def reason(error: BaseException) -> str | None:
    """What went wrong, in one line for the person; None when `error` is not one that is expected: a fault of ours.

    Expected are the exception classes that Foveal defines, the system's refusals, and that memory, descriptors or
    threads ran out, in whatever form a library says so.
    """
    if isinstance(error, OSError):
        return of_system(error)
    chain = list(_chain(error))
    if any(isinstance(each, MemoryError) for each in chain):
        return f"not enough memory{_colon(error)}"
    if isinstance(error, FovealError):
        return str(error) or type(error).__name__
    for each in chain:
        if isinstance(each, OSError) and isinstance(error, ImportError | SystemError):
            return of_system(each)
    # A package that could not be loaded may say so at length; what it began with is short.
    return _of_library(chain[-1] if isinstance(error, ImportError) else error)


def _of_library(error: BaseException) -> str | None:
    """What other packages say when something ran out or is not there."""
    text, home = str(error), type(error).__module__.partition(".")[0]
    if any(words in text for words in _NO_MEMORY):
        return f"not enough memory: {text}"
    if "(os error " in text and os.strerror(errno.EAGAIN) not in text:  # as Rust writes the system's refusals
        return text
    if os.strerror(errno.EMFILE) in text:
        return f"{text}{_HINTS[errno.EMFILE]}"
    if "can't start new thread" in text or os.strerror(errno.EAGAIN) in text:
        return "cannot start a thread; allow more processes (ulimit -u) or more memory (ulimit -v)"
    if isinstance(error, ImportError):
        return f"cannot load what is needed: {text}"
    if home == "sqlite3" and type(error).__name__ == "OperationalError":
        return f"the store's index cannot be used now: {text}"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{error.object!r} is not text: some of its bytes are not UTF-8"
    if isinstance(error, ValueError) and "embedded null" in text:
        return "a path with a NUL byte in it cannot be opened"
    if isinstance(error, RecursionError):
        return f"nested too deeply: {text}"
    return None


_NO_MEMORY = (
    "can't allocate memory", "annot allocate memory", "failed to map segment", "std::bad_alloc", "out of memory",
    "ot enough memory", "nable to allocate",
    "error return without exception set",  # an extension module's, whose own error found no memory
)  # fmt: skip


def of_system(error: OSError) -> str:
    """System errors in the form ``file: what happened``."""
    if not error.strerror:
        return str(error) or type(error).__name__
    named = "" if error.filename is None or isinstance(error, OutputFailed) else f"{_file(error.filename)}: "
    return f"{named}{error.strerror}{_HINTS.get(error.errno or 0, '')}"


def _file(name: str | bytes | int) -> str:
    return str(name) if isinstance(name, int) else os.fsdecode(name) or "''"


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
    return one_line(f"this is a fault of Foveal, please report it: {named} ({TRACEBACK}=1 shows where)")


def show_traceback(error: BaseException) -> None:
    """Print it, if the person asked for it."""
    if os.environ.get(TRACEBACK):
        import traceback

        traceback.print_exception(error)
