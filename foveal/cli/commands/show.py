"""`foveal show`: one memory, without opening a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.memories import describe
from foveal.cli.opening import opened
from foveal.cli.options import flag, json_option, name_argument, store_option
from foveal.cli.output import UserError, print_json, show_bytes, show_seconds

if TYPE_CHECKING:
    from foveal.memory import Store

_OURS, _THEIRS = "here", "elsewhere: it was imported (`foveal verify --recompute` computes it again)"


@click.command("show")
@name_argument
@store_option
@flag("--verify", "Read all it is made of and compare the checksums.")
@json_option
def command(name: str, folder: Path | None, verify: bool, json: bool) -> None:
    """Show what one memory holds and what it was made with."""
    from foveal.memory import memory_info

    store = opened(folder)
    info = memory_info(name, store, sizes=True)
    if info.problem is not None:
        raise UserError(f"memory {name}: {info.problem}")
    if verify:
        _verify(name, store)
    totals = info.facts["totals"]
    told = describe(info) | {
        "verified": verify,
        "seconds": totals["seconds"],
        "text_bytes": totals["text_bytes"],
        "fingerprint": info.facts["fingerprint"],
        "skipped": [{"path": path, "reason": reason} for path, reason in totals["skipped"]],
    }
    print_json(told) if json else _print(told)


def _verify(name: str, store: Store) -> None:
    from foveal.store.verify import verify

    problems = verify(store, [name]).problems
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"memory {name} is damaged: {problems[0]}{more}; `foveal verify {name}` lists all")


def _print(told: dict[str, Any]) -> None:
    from foveal.cli.render import print_blocks, table

    shown = table("memory", told["name"], rows=_rows(told))
    print_blocks(shown, table("made with", "", rows=told["fingerprint"].items()))


def _rows(told: dict[str, Any]) -> list[tuple[str, str]]:
    state = "" if told["complete"] else f" of {told['source_tokens']:,}; `foveal read` goes on"
    return [
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
    ]
