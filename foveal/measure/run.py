"""Measure in processes of their own, and gather what they say.

After a jump each depth gets a fresh process, so that its peak memory is its own; along a reading
one process goes through all depths, and its peak at each is that of having read so far.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import IO, Any

from foveal.checkpoint import inspect_checkpoint
from foveal.measure.machine import machine_facts
from foveal.measure.settings import MeasureError, Settings
from foveal.process.signals import shielded

Say = Callable[[str], None]


def measure(
    settings: Settings, *, name: str, say: Say = lambda _: None, each: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """The whole document of `foveal bench --json` (docs/benchmarks.md). `each` is given every row as it comes.

    Raises `MeasureError` with what the measuring process said when it failed.
    """
    document = header(settings, name)
    with closing(_messages(settings, say)) as messages:
        for kind, value in messages:
            if kind == "row":
                document["rows"].append(value)
                each(value)
            else:
                document |= value
    return document


def header(settings: Settings, name: str) -> dict[str, Any]:
    """The document before anything is measured: model, machine, settings and no rows."""
    summary = inspect_checkpoint(settings.model)
    return {
        "model": {
            "name": name,
            "parameters": summary.parameters,
            "active_parameters": summary.active,
            "weight_bytes": summary.nbytes,
            "weight_bytes_by_format": dict(summary.bytes_by_format),
            "config": summary.config.to_dict(),
        },
        "machine": machine_facts(),
        "threads": settings.threads,
        "settings": {key: value for key, value in settings.to_dict().items() if key != "model"},
        "rows": [],
    }


def _messages(settings: Settings, say: Say) -> Generator[tuple[str, Any], None, None]:
    """("facts", ...) and ("row", ...) of all the processes the settings need. Closing it ends the one that runs."""
    parts = [(depth,) for depth in settings.depths] if settings.jump else [settings.depths]
    for depths in parts:
        with closing(_process(dataclasses.replace(settings, depths=depths))) as messages:
            for kind, value in messages:
                if kind == "say":
                    say(value)
                else:
                    yield kind, value


def _process(settings: Settings) -> Generator[tuple[str, Any], None, None]:
    child: subprocess.Popen[str] | None = None
    failed: str | None = None
    try:
        with shielded():
            child = _start()
        assert child.stdin is not None and child.stdout is not None
        with suppress(BrokenPipeError), child.stdin as pipe:  # it may have failed before it reads
            json.dump(settings.to_dict(), pipe)
        for kind, value in _lines(child.stdout):
            if kind == "error":
                failed = value
            else:
                yield kind, value
        code = child.wait()
    finally:
        if child is not None:
            _stop(child)
    if code:
        raise MeasureError(failed or _reason(code, settings))


def _start() -> subprocess.Popen[str]:
    """-P: the current folder is no place to import from."""
    command = [sys.executable, "-P", "-m", "foveal.measure"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _lines(stream: IO[str]) -> Iterator[tuple[str, Any]]:
    for line in stream:
        yield from json.loads(line).items()


def _reason(code: int, settings: Settings) -> str:
    at = ", ".join(f"{depth:,}" for depth in settings.depths)
    if code == -9:
        return f"the measuring process was killed at {at} tokens; the machine may have run out of memory"
    return f"the measuring process ended with code {code} at {at} tokens; what it said is above"


def _stop(child: subprocess.Popen[str]) -> None:
    """End the process if it still runs: asked first, then made to."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
