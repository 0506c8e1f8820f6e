"""`foveal completion`: the script that makes a shell ask Foveal for completions."""

from __future__ import annotations

import sys

import click

from foveal.cli.completing import script

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS), help="The shell it is for.")
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and names in a shell. Where it goes stands in docs/cli.md."""
    sys.stdout.write(script(context.find_root().command, shell))
    sys.stdout.flush()
