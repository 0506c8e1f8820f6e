"""The `foveal` command: puts the commands together."""

from __future__ import annotations

import os
from typing import Annotated, NoReturn

import typer

from foveal import __version__
from foveal.cli import benching, evaluating, memories, models, planning, reading, recalling, storing, syncing, training
from foveal.cli.entry import main as enter
from foveal.cli.output import Commands, UserError, tell

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
        tell(f"foveal {__version__}")
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


def run() -> int:
    """Run the command of `sys.argv`; the exit code, or what it raised for `foveal.process.life.run` to tell."""
    _check_folder()
    code = app(standalone_mode=False)
    return code if isinstance(code, int) else 0


def _check_folder() -> None:
    """A library under torch ends the process with a line of its own where the current folder was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted; go to one that is there") from None


def main() -> NoReturn:
    """As the installed script, which begins with `foveal.cli.entry`."""
    enter()


if __name__ == "__main__":
    main()
