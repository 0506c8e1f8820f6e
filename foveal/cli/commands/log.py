"""`foveal log`: where a memory was forked from, and what was forked from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.opening import opened
from foveal.cli.options import json_option, name_argument, store_option
from foveal.cli.output import print_json

if TYPE_CHECKING:
    from foveal.memory import Store
    from foveal.store.objects import Context


@click.command("log")
@name_argument
@store_option
@json_option
def command(name: str, folder: Path | None, json: bool) -> None:
    """Show what NAME was forked from, and its forks, as a tree."""
    tree = _tree(opened(folder), name)
    print_json(tree) if json else _print(tree)


def _print(tree: dict[str, Any]) -> None:
    from foveal.cli.render import results, table

    shown = table("memory", "tokens>", "forked at>", "saved")
    for depth, node in _walk(tree):
        at = f"{node['forked_at']:,}" if node["forked_at"] is not None else "-"
        tokens = f"{node['tokens']:,}" if node["tokens"] is not None else "deleted"
        shown.add_row("  " * depth + node["name"], tokens, at, (node["saved"] or "-")[:16].replace("T", " "))
    results().print(shown)


def _walk(tree: dict[str, Any], depth: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    yield depth, tree
    for branch in tree["forks"]:
        yield from _walk(branch, depth + 1)


def _tree(store: Store, name: str) -> dict[str, Any]:
    """The tree of forks that `name` stands in, from the oldest ancestor that is known."""
    from foveal.memory import StoreError

    known: dict[str, Context] = {c.name: c for c in store.contexts() if not isinstance(c, StoreError)}
    children = defaultdict(list)
    for context in known.values():
        children[context.parent].append(context.name)
    store.context(name)
    top, seen = name, {name}
    while top in known and known[top].parent and known[top].parent not in seen:
        top = known[top].parent
        seen.add(top)
    return _branch(top, known, children, set())


def _branch(name: str, known: dict[str, Context], children: dict[str, list[str]], above: set[str]) -> dict[str, Any]:
    context = known.get(name)
    forks = [child for child in sorted(children.get(name, [])) if child not in above | {name}]
    return {
        "name": name,
        "tokens": context.length if context is not None else None,
        "forked_at": context.forked_at if context is not None and context.parent else None,
        "saved": context.saved if context is not None else None,
        "forks": [_branch(child, known, children, above | {name}) for child in forks],
    }
