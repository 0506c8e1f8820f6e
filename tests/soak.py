"""The tests that find more the longer they run, for as long as one likes: `make soak`, or

    python tests/soak.py --minutes 60 [--only NAME]

State machines with new examples, kills and damage, every failing call with every error, fuzzing. What it finds belongs
into a plain test.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent


def machine(file: str, name: str) -> Callable[[float], None]:
    """Examples of a state machine, `EXAMPLES` at a time, for so many seconds. Raises what it fails with."""

    def run(seconds: float) -> None:
        from hypothesis import HealthCheck, settings
        from hypothesis.stateful import run_state_machine_as_test

        importlib.import_module("conftest")
        found = getattr(_module(HERE / file), name)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run_state_machine_as_test(
                found,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=30,
                    deadline=None,
                    derandomize=False,
                    database=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )

    return run


EXAMPLES = 100


def _module(file: Path) -> ModuleType:
    """The module in `file`."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def torture(seconds: float) -> None:
    """Kills and damage in every setting."""
    _run([sys.executable, str(HERE / "store_torture.py"), "--minutes", str(seconds / 60)])


def suite(*arguments: str) -> Callable[[float], None]:
    """Tests that do more with FOVEAL_SOAK, once, however long that takes."""

    def run(seconds: float) -> None:
        environment = {**os.environ, "FOVEAL_SOAK": f"{seconds:.0f}"}
        _run([sys.executable, "-m", "pytest", "-q", "-x", "--rootdir", str(HERE.parent), *arguments], environment)

    return run


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=environment, cwd=HERE.parent)


PARTS: dict[str, Callable[[float], None]] = {
    "store machine": machine("store/test_machine.py", "StoreMachine"),
    "cache machine": machine("cache/test_machine.py", "CacheMachine"),
    "packed cache machine": machine("cache/test_machine.py", "PackedMachine"),
    "torture": torture,
    "failing calls": suite("tests/store/test_unavailable.py"),
    "forged exports": suite("tests/store/test_fuzz.py"),
    "ignore rules": suite("tests/sources/test_fuzz.py"),
    "streams and clients that leave": suite("tests/server/test_crowd.py"),
    "kills of a server": suite("tests/server/test_kills.py"),
    "ways out": suite("tests/cli/test_ways_out.py"),
}


def main() -> None:
    """Each part in turn, until the time is over or one has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--only", choices=list(PARTS))
    given = parser.parse_args()
    chosen = {name: part for name, part in PARTS.items() if given.only in (None, name)}
    share = given.minutes * 60 / len(chosen)
    for name, part in chosen.items():
        started = time.monotonic()
        print(f"{name}, about {share / 60:.1f} minutes ...", flush=True)
        part(share)
        print(f"{name}: nothing found in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
