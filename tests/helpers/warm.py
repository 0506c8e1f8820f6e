"""One process that has imported everything, and forks a child for each command: hundreds of ways out in seconds.

A child begins as a new process would: descriptors, limits and signals as asked, the standard streams made as Python
makes them, and the command line entered through `foveal.cli.entry`. It ends through the interpreter's own end.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Conditions:
    """What a command runs under."""

    out: str = "file"
    """Standard output: file, gone (a pipe nobody reads), byte (a pipe whose reader leaves after one), full, closed."""
    errors: str = "kept"
    """Standard error: kept (a pipe that is read), gone, full or closed."""
    input: str = "null"
    """Standard input: null or closed."""
    descriptors: int | None = None
    """The most that may be open."""
    memory: int | None = None
    """Bytes of address space beyond what the warm process has."""
    file_size: int | None = None
    """Bytes that a file may grow to."""
    signals: tuple[tuple[int, int], ...] = ()
    """Signals and the number of the function call at which they come, counted from the entry point on."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: bytes
    errors: str


class Warm:
    """The warm process. A context manager."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # no more requests: it ends

    def run(self, command: Sequence[str], conditions: Conditions, folder: Path | None = None) -> Ended:
        """Run ``foveal COMMAND`` in `folder`."""
        asked = {"command": list(command), "folder": str(folder or self._scratch), "scratch": str(self._scratch)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked | {"conditions": asdict(conditions)}) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return Ended(told["code"], base64.b64decode(told["out"]), told["errors"])


# ---------------------------------------------------------------------- the warm process


def serve() -> None:
    """Answer requests until there are no more."""
    _import_everything()
    answers = os.fdopen(os.dup(1), "w")
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        scratch, conditions = Path(asked["scratch"]), Conditions(**asked["conditions"])
        file = scratch / "output"
        (reader, writer), (errors, kept) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            _become(asked["command"], Path(asked["folder"]), conditions, file, writer, kept)
        os.close(writer)
        os.close(kept)
        if conditions.out == "byte":
            os.read(reader, 1)
        os.close(reader)
        _, status = os.waitpid(child, 0)
        out = file.read_bytes() if file.exists() else b""
        file.unlink(missing_ok=True)
        with open(errors, "rb") as pipe:  # more than a pipe holds would be a fault in itself
            said = pipe.read().decode(errors="replace")
        answer = {"code": os.waitstatus_to_exitcode(status), "out": base64.b64encode(out).decode(), "errors": said}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_everything() -> None:
    import importlib
    import pkgutil

    import foveal
    from foveal.errors import MissingExtra

    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)  # a forked child has no other threads
    for module in pkgutil.walk_packages(foveal.__path__, "foveal."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(MissingExtra):
                importlib.import_module(module.name)
    gc.freeze()  # a child's collections shall not touch, and so copy, what it shares with its parent


def _become(command: list[str], folder: Path, conditions: Conditions, file: Path, writer: int, kept: int) -> None:
    """Be a new process that runs the command."""
    os.chdir(folder)
    os.environ.update(conditions.environment)
    _set_streams(conditions, file, writer, kept)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _set_limits(conditions)
    sys.argv = ["foveal", *command]
    from foveal.cli.entry import main

    if conditions.signals:
        sys.setprofile(_Sender({call: number for number, call in conditions.signals}))
    main()


def _set_streams(conditions: Conditions, file: Path, writer: int, kept: int) -> None:
    """0, 1 and 2 as asked, and nothing else open."""
    gone = os.pipe()
    os.close(gone[0])
    opened = {"closed": None, "gone": gone[1], "byte": writer, "kept": kept, "null": os.open(os.devnull, os.O_RDWR)}
    opened["full"] = os.open("/dev/full", os.O_WRONLY)
    ways = {0: conditions.input, 1: conditions.out, 2: conditions.errors}
    for number, way in ways.items():
        if way == "file":
            opened[way] = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        source = opened[way]
        os.close(number) if source is None else os.dup2(source, number)
    os.closerange(3, 256)
    streams: list[Any] = []
    for number, way in ways.items():
        mode = "w" if number else "r"
        opened_here = way != "closed"
        streams.append(open(number, mode, closefd=False, encoding="utf-8") if opened_here else None)  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = streams


def _set_limits(conditions: Conditions) -> None:
    if conditions.descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (conditions.descriptors, conditions.descriptors))
    if conditions.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (conditions.file_size, conditions.file_size))
    if conditions.memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + conditions.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


class _Sender:
    """Sends this process a signal at the given calls: a moment that does not depend on the clock."""

    def __init__(self, at: dict[int, int]) -> None:
        self._at, self._calls = at, 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not self._at:
            return
        self._calls += 1
        if (number := self._at.pop(self._calls, None)) is not None:
            os.kill(os.getpid(), number)


if __name__ == "__main__":
    serve()
