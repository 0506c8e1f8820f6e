"""`foveal fork`: a second memory out of the beginning of one."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.opening import opened
from foveal.cli.options import json_option, name_argument, store_option
from foveal.cli.output import note, parse_limit, print_json


@click.command("fork")
@name_argument
@click.argument("new", help="Name of the fork.")
@click.option("--at", metavar="TOKENS", help="Tokens the fork begins with (128k); default: all.")
@store_option
@json_option
def command(name: str, new: str, at: str | None, folder: Path | None, json: bool) -> None:
    """Make a second memory out of the first tokens of NAME. No page is copied; each goes on by itself."""
    from foveal.memory.names import check_name
    from foveal.store import contexts

    made = contexts.fork(opened(folder), name, check_name(new), at=parse_limit(at))
    if json:
        print_json({"name": made.name, "parent": made.parent, "forked_at": made.forked_at, "tokens": made.length})
    else:
        note(f"{made.name} has the first {made.length:,} tokens of {made.parent}")
