"""The `foveal` command: puts the commands together and is the entry point of the installed script."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from foveal import __version__
from foveal.cli import benching, evaluating, memories, models, planning, reading, recalling, storing, syncing, training
from foveal.cli.output import INTERRUPTED, Commands

app = typer.Typer(
    name="foveal",
    cls=Commands,
    help="A compressed memory for agents: read a code base once, recall from it with the lines the answer came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foveal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `foveal` itself."""


for module in (reading, syncing, recalling, memories, storing, models, planning, benching, evaluating, training):
    module.register(app)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    # Before torch is loaded: its threads shall sleep while they wait for each other. The default, to spin, made reading
    # ten times slower on a machine whose cores had other work too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except BrokenPipeError:  # the reader of stdout went away (`foveal ls | head -1`): nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
