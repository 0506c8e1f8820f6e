"""`foveal ls`: the memories there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from foveal.cli.memories import describe
from foveal.cli.options import json_option, store_option
from foveal.cli.output import note, print_json, show_bytes


@click.command("ls")
@store_option
@json_option
def command(folder: Path | None, json: bool) -> None:
    """List all memories."""
    from foveal.memory import list_memories, store_root

    found = [describe(info) for info in list_memories(folder)]
    if json:
        print_json({"store": str(store_root(folder)), "memories": found})
    elif found:
        _print(found)
    else:
        note(f"there are no memories in {store_root(folder)}; `foveal read PATH --name NAME` makes one")


def _print(found: list[dict[str, Any]]) -> None:
    from foveal.cli.render import results, table

    listed = table("name", "tokens>", "files>", "own>", "shared>", "model", "made", "source")
    for memory in found:
        listed.add_row(memory["name"], *_cells(memory))
    results().print(listed)


def _cells(memory: dict[str, Any]) -> list[str]:
    if memory["problem"] is not None:
        return ["-"] * 6 + [f"damaged: {memory['problem']}"]
    return [
        f"{memory['tokens']:,}" + ("" if memory["complete"] else f" of {memory['source_tokens']:,}"),
        f"{memory['files']:,}",
        show_bytes(memory["own_bytes"]),
        show_bytes(memory["shared_bytes"]),
        memory["model"],
        memory["created"][:16].replace("T", " "),
        _source(memory),
    ]


def _source(memory: dict[str, Any]) -> str:
    if memory["conversation"]:
        return f"a conversation{' about ' + memory['parent'] if memory['parent'] else ''}"
    return str(memory["source"]) + (" (elsewhere)" if memory["elsewhere"] else "")
