"""What the shell is offered behind Tab: names of memories and presets. A failure offers nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.process.failures import reason

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

PROGRAM = "foveal"
VARIABLE = "_FOVEAL_COMPLETE"
"""The environment variable by which the shell's function asks for completions."""


def answer(group: click.Command) -> int | None:
    """Answer the shell, if it is the shell that asks; the exit code then, else None."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return None
    from click.shell_completion import shell_complete

    return shell_complete(group, {}, PROGRAM, VARIABLE, asked)


def script(group: click.Command, shell: str) -> str:
    """What the shell runs to know the completions of `group`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, shell
    completion = found(group, {}, PROGRAM, VARIABLE)
    return completion.source_template % completion.source_vars()


def memory_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of memories in the store of ``--store``, or in the default one, that are not on the line already."""
    folder, given = context.params.get("folder"), context.params.get(parameter.name or "")
    return _offered(lambda: [name for name in _names(folder) if name not in (given or ())], incomplete)


def presets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of presets."""
    from foveal.config import PRESETS

    return _offered(lambda: list(PRESETS), incomplete)


def _names(folder: Path | None) -> list[str]:
    """Names that a command takes; a damaged memory is known by another."""
    from foveal.memory import list_memories

    return [info.name for info in list_memories(folder) if info.problem is None]


def _offered(find: Callable[[], list[str]], incomplete: str) -> list[str]:
    try:
        return [name for name in find() if name.startswith(incomplete)]
    except Exception as error:
        if reason(error) is None:
            raise
        return []
