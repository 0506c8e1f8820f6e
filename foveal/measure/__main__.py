"""The process that measures: one `Settings` as JSON on standard input, one JSON object a line on standard output.

What is special here: it is a process of its own, so that its memory mark belongs to what is measured and to nothing
before it. Lines are ``{"say": text}``, ``{"facts": {...}}``, ``{"row": {...}}`` and, at the end, ``{"error": text}``
if it failed in a way that a person can understand. Anything else is a fault and a traceback on standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Any


def main() -> int:
    """Exit code: 0 done, 1 failed, 130 interrupted."""
    # As in `foveal.cli.main`: before torch is loaded, so that its threads sleep while they wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _measure(json.load(sys.stdin))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever asked is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not (isinstance(error, OSError | MemoryError) or type(error).__module__.startswith("foveal.")):
            raise
        _tell("error", str(error) or type(error).__name__)
        return 1
    return 0


def _measure(data: Mapping[str, Any]) -> None:
    from foveal.api import Engine
    from foveal.measure.settings import Settings
    from foveal.measure.speed import Meter, facts

    settings = Settings.from_dict(data)
    _tell("say", "opening the model")
    engine = Engine.open(settings.model, threads=settings.threads, kv=settings.format())
    _tell("facts", facts(engine, settings))
    for row in Meter(engine, settings, lambda text: _tell("say", text)).rows():
        _tell("row", dataclasses.asdict(row))


def _tell(kind: str, value: Any) -> None:
    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
