"""The standard streams: standard output that says why it cannot be written, standard error that never fails."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress

from foveal.process.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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


def take() -> None:
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
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Notes(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _text(raw: io.FileIO, before: Any, line_buffering: bool = False) -> io.TextIOWrapper:
    """A text stream over `raw`, encoded as `before` was."""
    encoding = before.encoding if before is not None else "utf-8"
    lines = line_buffering or (before is not None and before.line_buffering)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", newline=None, line_buffering=lines
    )


def close_output() -> OSError | None:
    """Write out what is left for standard output; what kept it from being written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop_output()
        return error
    return None


def drop_output() -> None:
    """What was not written shall not be tried again at the end."""
    sys.stdout = io.TextIOWrapper(io.BytesIO())


def say(line: str) -> None:
    """One line on standard error, with as little as can be: it may be memory that there is none of."""
    with suppress(OSError, MemoryError):
        os.write(2, f"foveal: {line}\n".encode("utf-8", "backslashreplace"))


def tell_at_once(message: str) -> None:
    """One line on standard error out of a signal's handler: a stream that is just being written to cannot be used."""
    clear = "\r\x1b[2K" if os.isatty(2) else ""  # what a bar has drawn
    with suppress(OSError):
        os.write(2, f"{clear}{message}\n".encode())


def told(message: str) -> None:
    """One line on standard error, as `printable`."""
    sys.stderr.write(printable(message) + "\n")
    sys.stderr.flush()
