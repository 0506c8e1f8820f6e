"""`foveal import`: a memory out of the file that `foveal export` wrote."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click

from foveal.cli.opening import opened
from foveal.cli.options import flag, json_option, store_option
from foveal.cli.output import UserError, note, print_json


@click.command("import")
@click.argument("file", type=click.Path(), help="File that `foveal export` wrote, or - for standard input.")
@click.option("--name", "-n", metavar="NAME", help="Name to give it; default: its own.")
@flag("--trust", "Take its pages for computed here: you made the file yourself.")
@click.option(
    "--source",
    multiple=True,
    metavar="PATH",
    help="Where its source lies on this machine; for each path it was read from.",
)
@store_option
@json_option
def command(file: str, name: str | None, trust: bool, source: tuple[str, ...], folder: Path | None, json: bool) -> None:
    """Enter an exported memory. A file of which anything is off is refused whole.

    Only this memory and its forks use what it brings, until `foveal verify --recompute` has computed it again.
    """
    from foveal.store import transfer

    _check(file, name, source)
    with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as stream:
        into = opened(folder, create=True)
        made = transfer.import_file(into, stream, name, trust=trust, source=list(source) or None)
    if json:
        print_json({"name": made.name, "tokens": made.length, "origin": made.origin or None})
    else:
        serves = (
            f"; no other memory uses its pages until `foveal verify --recompute {made.name}`" if made.origin else ""
        )
        note(f"{made.name}: {made.length:,} tokens{serves}")


def _check(file: str, name: str | None, source: tuple[str, ...]) -> None:
    """Refuse what cannot become a memory before anything is opened."""
    from foveal.memory.names import check_name

    if name is not None:
        check_name(name)
    for path in source:
        if not Path(path).exists():
            raise UserError(f"{path} does not exist; say where the source lies, or leave --source out")
    if file == "-" and sys.stdin.isatty():
        raise UserError("an exported memory is no text; name a file, or send one to standard input")
