"""The `foveal` command: the table of its commands, and its own options."""

from __future__ import annotations

import os
from typing import NoReturn

import click

from foveal.cli.entry import main as enter
from foveal.cli.group import Commands
from foveal.cli.logs import LEVELS, show_logs
from foveal.cli.output import UserError, tell

COMMANDS = {
    "read": ("read", "Read a source into memory NAME."),
    "sync": ("sync", "Bring memory NAME up to date with its files."),
    "recall": ("recall", "Continue CUE out of memory NAME, and cite the lines."),
    "ask": ("ask", "Answer QUESTION from memory NAME, with its lines."),
    "chat": ("chat", "Chat with a model, about a memory if you like."),
    "serve": ("serve", "Serve models and memories over HTTP."),
    "look": ("look", "Look at memories in a browser."),
    "doctor": ("doctor", "Tell what this machine has, what is missing, and how to mend it."),
    "why": ("why", "Tell why a server's last prompts were not found whole."),
    "check-hits": ("check_hits", "Check that a server says the same of a prompt it knows."),
    "mcp": ("mcp", "Give an agent memories as MCP tools, on stdin and stdout."),
    "ls": ("ls", "List all memories."),
    "show": ("show", "Show what one memory holds and what it was made with."),
    "rm": ("rm", "Delete memories."),
    "fork": ("fork", "Make a second memory out of the first tokens of NAME."),
    "log": ("log", "Show what NAME was forked from, and its forks, as a tree."),
    "pin": ("pin", "Never evict NAME under a limit."),
    "verify": ("verify", "Read everything and compare all checksums and references."),
    "export": ("export", "Write NAME to one file, checksummed."),
    "import": ("import_", "Enter an exported memory."),
    "gc": ("gc", "Give back the space of what was deleted."),
    "du": ("du", "Show the bytes of each memory, its own and shared ones."),
    "inspect": ("inspect", "Print layers, parameters and bytes by format of a model."),
    "init": ("init", "Write a checkpoint with random weights in the official layout."),
    "plan": ("plan", "Compute weights and cache for a model, context and machine."),
    "bench": ("bench", "Measure reading and decoding at growing depths."),
    "eval": ("eval", "Measure recall of long texts by the tasks of docs/evals.md."),
    "convert": ("convert", "Make a V4 model of a pretrained one."),
    "train": ("train", "Train a network, or go on where the last run stopped."),
    "tokenize": ("tokenize", "Make the memory-mapped token store that training reads."),
    "completion": ("completion", "Print a script that completes commands and names in a shell."),
}
"""Name -> file in `foveal.cli.commands` and help in one line, so that ``foveal --help`` imports none of them."""


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from foveal import __version__

        tell(f"foveal {__version__}")
        context.exit()


@click.group(
    "foveal",
    cls=Commands,
    table=COMMANDS,
    help="A compressed memory for agents: read a code base once, recall from it with the lines the answer came from.",
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    metavar="LEVEL",
    envvar="FOVEAL_LOG",
    show_envvar=True,
    help="Tell on stderr what is logged: debug, info, warning or error, and all above it.",
)
def app(log_level: str | None) -> None:
    show_logs(log_level)


def run() -> int:
    """Run the command of `sys.argv`; the exit code, or what it raised for `foveal.process.life.run` to tell."""
    _check_folder()
    code = app(standalone_mode=False)
    return code if isinstance(code, int) else 0


def _check_folder() -> None:
    """Libraries fail in ways of their own where the current folder was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder was deleted; go to one that is there") from None


def main() -> NoReturn:
    """As the installed script, which begins with `foveal.cli.entry`."""
    enter()


if __name__ == "__main__":
    main()
