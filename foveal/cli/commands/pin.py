"""`foveal pin`: keep a memory, whatever limit the store has."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.opening import opened
from foveal.cli.options import flag, json_option, name_argument, store_option
from foveal.cli.output import print_json


@click.command("pin")
@name_argument
@flag("--off", "Let it be evicted again.")
@store_option
@json_option
def command(name: str, off: bool, folder: Path | None, json: bool) -> None:
    """Never evict NAME under a limit."""
    from foveal.store import contexts

    made = contexts.change(opened(folder), name, pinned=not off)
    if json:
        print_json({"name": made.name, "pinned": made.pinned})
