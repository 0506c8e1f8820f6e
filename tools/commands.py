"""The command line as data, as click holds it: for the manual pages and for the reference in the documents."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

import click

from foveal.cli.main import app


@dataclass(frozen=True)
class Page:
    """One command. `usage` begins with its full name; `text` has paragraphs with an empty line between them; the rest
    are pairs of what is written and what it means."""

    name: str
    line: str
    usage: str
    text: str
    arguments: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]


def pages() -> list[Page]:
    """`foveal` itself, then its commands in the order of its help."""
    root = click.Context(app, info_name="foveal", **app.context_settings)
    found = [_page(app, root, "foveal", "a compressed memory for agents")]
    for name, (_, line) in app.table.items():
        command = app.get_command(root, name)
        assert command is not None
        found.append(_page(command, click.Context(command, info_name=name, parent=root), f"foveal {name}", line))
    return found


def _page(command: click.Command, context: click.Context, name: str, line: str) -> Page:
    records: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            records[isinstance(parameter, click.Option)].append((record[0], " ".join(record[1].split())))
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").split("\f")[0].strip()
    return Page(name, line, usage, re.sub(r"^\x08\n", "", text), tuple(records[False]), tuple(records[True]))
