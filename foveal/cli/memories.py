"""`foveal ls`, `show` and `rm`: the memories there are. None of them opens a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import Json, StorePath, opened
from foveal.cli.output import FAILED, UserError, note, print_json, results, show_bytes, show_seconds, table

if TYPE_CHECKING:
    from foveal.memory import MemoryInfo, Store


_OURS, _THEIRS = "here", "elsewhere: it was imported (`foveal verify --recompute` computes it again)"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("ls")(list_all)
    app.command()(show)
    app.command()(rm)


def list_all(store: StorePath = None, json: Json = False) -> None:
    """List all memories."""
    from foveal.memory import list_memories, store_root

    found = [describe(info) for info in list_memories(store)]
    if json:
        print_json({"store": str(store_root(store)), "memories": found})
        return
    if not found:
        note(f"there are no memories in {store_root(store)}; `foveal read PATH --name NAME` makes one")
        return
    listed = table("name", "tokens>", "files>", "own>", "shared>", "model", "made", "source")
    for memory in found:
        if memory["problem"] is not None:
            listed.add_row(memory["name"], "-", "-", "-", "-", "-", "-", f"damaged: {memory['problem']}")
            continue
        read = f"{memory['tokens']:,}" + ("" if memory["complete"] else f" of {memory['source_tokens']:,}")
        listed.add_row(
            memory["name"],
            read,
            f"{memory['files']:,}",
            show_bytes(memory["own_bytes"]),
            show_bytes(memory["shared_bytes"]),
            memory["model"],
            memory["created"][:16].replace("T", " "),
            memory["source"] + (" (elsewhere)" if memory["elsewhere"] else ""),
        )
    results().print(listed)


def show(
    name: Annotated[str, typer.Argument(help="Name of the memory.")],
    store: StorePath = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read all it is made of and compare the checksums.")] = False,
    json: Json = False,
) -> None:
    """Show what one memory holds and what it was made with."""
    from foveal.memory import memory_info

    info = memory_info(name, opened(store), sizes=True)
    if info.problem is not None:
        raise UserError(f"memory {name}: {info.problem}")
    if verify:
        _verify(name, opened(store))
    told = describe(info) | {
        "verified": verify,
        "seconds": info.facts["totals"]["seconds"],
        "text_bytes": info.facts["totals"]["text_bytes"],
        "fingerprint": info.facts["fingerprint"],
        "skipped": [{"path": path, "reason": reason} for path, reason in info.facts["totals"]["skipped"]],
    }
    if json:
        print_json(told)
    else:
        _print(told)


def rm(
    names: Annotated[list[str], typer.Argument(help="Names of the memories to delete.")],
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Delete memories. A name that does not exist is reported; the others are deleted all the same."""
    from foveal.memory import StoreError, delete_memory

    removed: list[str] = []
    problems: dict[str, str] = {}
    for name in names:
        try:
            delete_memory(name, opened(store))
            removed.append(name)
        except StoreError as error:
            problems[name] = str(error)
    if json:
        print_json({"removed": removed, "problems": problems})
    for problem in problems.values():
        note(f"foveal: {problem}")
    if problems:
        raise typer.Exit(FAILED)


def _verify(name: str, store: Store) -> None:
    from foveal.memory.store.verify import verify

    problems = verify(store, [name]).problems
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"memory {name} is damaged: {problems[0]}{more}; `foveal verify {name}` lists all")


def describe(info: MemoryInfo) -> dict[str, Any]:
    """The JSON of one memory in `foveal ls` (docs/cli.md)."""
    if info.problem is not None:
        return {"name": info.name, "path": str(info.path), "problem": info.problem}
    facts = info.facts
    return {
        "name": info.name,
        "path": str(info.path),
        "problem": None,
        "model": facts["model"],
        "cache": facts["cache"],
        "created": facts["created"],
        "source": facts["source"]["source"],
        "elsewhere": facts["source"].get("elsewhere", False),
        "origin": facts["origin"] or None,
        "tokens": facts["tokens"],
        "source_tokens": facts["totals"]["tokens"],
        "complete": facts["totals"]["complete"],
        "files": facts["totals"]["files"],
        "own_bytes": facts["own_bytes"],
        "shared_bytes": facts["shared_bytes"],
        "disk_bytes": facts["own_bytes"] + facts["shared_bytes"],
        "parent": facts["parent"] or None,
        "forked_at": facts["forked_at"] or None,
        "pinned": facts["pinned"],
    }


def _print(told: dict[str, Any]) -> None:
    out = results()
    shown = table("memory", told["name"])
    state = "" if told["complete"] else f" of {told['source_tokens']:,}; `foveal read` goes on"
    for label, value in (
        ("source", told["source"] + (" (on another machine)" if told["elsewhere"] else "")),
        ("computed", _OURS if told["origin"] is None else _THEIRS),
        ("files", f"{told['files']:,} ({show_bytes(told['text_bytes'])} of text)"),
        ("tokens", f"{told['tokens']:,}{state}"),
        ("skipped", f"{len(told['skipped']):,}"),
        ("made", told["created"]),
        ("reading took", show_seconds(told["seconds"])),
        ("model", told["model"]),
        ("cache format", told["cache"]),
        ("forked from", f"{told['parent']} at token {told['forked_at']:,}" if told["parent"] else "-"),
        ("store", told["path"]),
        ("on disk", f"{show_bytes(told['own_bytes'])} of its own, {show_bytes(told['shared_bytes'])} shared"),
        ("pinned", "yes" if told["pinned"] else "no"),
        ("checksums", "all is as it was written" if told["verified"] else "not compared (--verify does)"),
    ):
        shown.add_row(label, value)
    made = table("made with", "")
    for part, value in told["fingerprint"].items():
        made.add_row(part, value)
    for block in (shown, made):
        out.print(block)
        out.print()
