"""`foveal rm`: delete memories."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.completing import memory_names
from foveal.cli.opening import opened
from foveal.cli.options import json_option, store_option
from foveal.cli.output import FAILED, note, print_json


@click.command("rm")
@click.argument("names", nargs=-1, required=True, shell_complete=memory_names, help="Names of the memories to delete.")
@store_option
@json_option
def command(names: tuple[str, ...], folder: Path | None, json: bool) -> None:
    """Delete memories. A name that does not exist is reported; the others are deleted all the same."""
    from foveal.memory import StoreError, delete_memory

    removed: list[str] = []
    problems: dict[str, str] = {}
    for name in names:
        try:
            delete_memory(name, opened(folder))
            removed.append(name)
        except StoreError as error:
            problems[name] = str(error)
    if json:
        print_json({"removed": removed, "problems": problems})
    for problem in problems.values():
        note(f"foveal: {problem}")
    if problems:
        raise click.exceptions.Exit(FAILED)
