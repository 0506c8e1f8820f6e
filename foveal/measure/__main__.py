"""The process that measures: one `Settings` as JSON on standard input, one JSON object a line on standard output.

It is a process of its own, so that its memory mark belongs to what is measured and to nothing before it. Lines are
``{"say": text}``, ``{"facts": {...}}``, ``{"row": {...}}`` and, when it failed, ``{"error": text}`` at the end.
"""

from __future__ import annotations

import signal
import sys

from foveal.process import failures, signals, streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def main() -> int:
    """Exit code: 0 done, 1 failed."""
    import json

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever started it wants it gone, and there is nothing to put away
    try:
        _measure(json.load(sys.stdin))
    except streams.OutputFailed:  # whoever asked is gone
        raise
    except Exception as error:
        failures.show_traceback(error)
        _tell("error", failures.reason(error) or failures.fault(error))
        return failures.FAILED
    return 0


def _measure(data: Mapping[str, Any]) -> None:
    import dataclasses

    from foveal.engine import Engine
    from foveal.measure.settings import Settings
    from foveal.measure.speed import Meter, facts

    settings = Settings.from_dict(data)
    _tell("say", "opening the model")
    engine = Engine.open(settings.model, threads=settings.threads, kv=settings.format())
    _tell("facts", facts(engine, settings))
    for row in Meter(engine, settings, lambda text: _tell("say", text)).rows():
        _tell("row", dataclasses.asdict(row))


def _tell(kind: str, value: Any) -> None:
    import json

    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()


def _load() -> Callable[[], int]:
    return main


if __name__ == "__main__":
    signals.take(keeps=True)
    from foveal.process.life import run

    run(_load, keeps=True)
