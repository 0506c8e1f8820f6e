"""Asking git about a folder, so that nothing but git runs.

A repository's own settings can name programs (hooks, filters, monitors, pagers). None of the questions asked here needs
one, and those that git might start by itself are turned off. Of the environment git sees the settings of the person
(which configuration files hold, where to stop looking for a repository) and nothing that names another repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from foveal.process.logs import logger

_log = logger(__name__)

PATIENCE = 60.0
"""Seconds that git may take for one question."""

_SAFE = (
    *("--no-pager", "--no-optional-locks"),
    *("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "log.showSignature=false"),
)
_QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
    # A partial clone fetches what it lacks by programs that its settings name; not every git knows the first of these.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
}
_SETTINGS = re.compile(
    r"GIT_(CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY_\d+|VALUE_\d+)|CEILING_DIRECTORIES|DISCOVERY_ACROSS_FILESYSTEM)"
)


@dataclass(frozen=True)
class Answer:
    """What git printed, or None and, in one line, why it did not answer."""

    output: bytes | None
    problem: str = ""


def ask(folder: Path, *arguments: str, patience: float = PATIENCE) -> Answer:
    """What git says in `folder`. Never raises."""
    program = _program()
    if program is None:
        return Answer(None, "git is not installed")
    try:
        done = subprocess.run(
            [program, *_SAFE, "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=patience,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"git took longer than {patience:.0f} s")
    except (OSError, ValueError) as error:
        return Answer(None, f"git cannot be run: {getattr(error, 'strerror', None) or error}")
    if done.returncode == 0:
        return Answer(done.stdout)
    problem = _problem(done.stderr.decode("utf-8", "replace"))
    _log.info("git %s in %s: %s", arguments[0], folder, problem)
    return Answer(None, problem)


def of_work_tree(folder: Path, *arguments: str) -> Answer:
    """As `ask`, where `folder` lies in the work tree of its repository: the settings of a repository may name another
    place, of which git would answer."""
    inside = ask(folder, "rev-parse", "--is-inside-work-tree")
    if inside.output is not None and inside.output.strip() != b"true":
        return Answer(None, "it lies outside of the repository's work tree")
    return ask(folder, *arguments) if inside.output is not None else inside


def _program() -> str | None:
    """Where git is; what lies in the current folder is not it, whatever PATH says."""
    places = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(place)]
    return shutil.which("git", path=os.pathsep.join(places)) if places else None


def _environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GIT_") or _SETTINGS.fullmatch(name)}
    return kept | _QUIET


def _problem(said: str) -> str:
    """The first line that git wrote to stderr, as a reason."""
    if "dubious ownership" in said:
        return "git refuses a repository that belongs to somebody else (its setting safe.directory allows it)"
    first = next((line for line in said.split("\n") if line.startswith(("fatal: ", "error: "))), "git failed")
    return f"git says: {first.partition(': ')[2] or first}"
