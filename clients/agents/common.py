"""Command lines of agents, each in a home and a folder of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

URL, KEY, MODEL = os.environ["FOVEAL_URL"], os.environ["FOVEAL_KEY"], os.environ["FOVEAL_MODEL"]
BIN = Path(os.environ["CLIENT_BIN"])
HOME = Path(os.environ["CLIENT_HOME"])


def run(command: Sequence[str], settings: Mapping[str, str] | None = None, limit: float = 400) -> tuple[int, str]:
    """The exit code and the output of an agent that works on one small file."""
    work = HOME / "work"
    work.mkdir(parents=True, exist_ok=True)
    (work / "a.py").write_text("x = 1\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(HOME), "TERM": "dumb"} | dict(settings or {})
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )
    return done.returncode, done.stdout
