"""`foveal gc`: give space back."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.memories import tell_lost
from foveal.cli.opening import opened
from foveal.cli.options import flag, json_option, store_option
from foveal.cli.output import FAILED, note, parse_count, print_json, show_bytes


@click.command("gc")
@click.option("--limit", metavar="BYTES", help="Evict what is least valuable until so many bytes are left.")
@flag("--empty-lost", "Delete for good what was damaged and kept in the folder lost.")
@store_option
@json_option
def command(limit: str | None, empty_lost: bool, folder: Path | None, json: bool) -> None:
    """Give back the space of what was deleted. With --limit, evict as well; tokens stay, and evicted memories work."""
    from foveal.store import eviction, gc, usage

    store = opened(folder)
    before = usage.disk_bytes(store)
    evicted = eviction.Evicted(0, 0, True) if limit is None else eviction.evict(store, parse_count(limit))
    kept = gc.collect(store, threshold=0.0).kept
    after = usage.disk_bytes(store)
    emptied = gc.empty_lost(store) if empty_lost else 0
    lost = sum(store.packs.lost.sizes().values())
    if json:
        told = {"bytes": after, "freed": before - after, "evicted_pages": evicted.pages, "evicted_tails": evicted.tails}
        given_up = {"given_up_bytes": lost, "given_up_freed": emptied}
        print_json({**told, **given_up, "within_limit": evicted.within, "kept": list(kept)})
    else:
        note(f"{show_bytes(before - after + emptied)} given back, {show_bytes(after)} in use")
        tell_lost(lost)
    if kept:
        note(f"foveal: not all space could be given back: {'; '.join(kept)}")
    if not evicted.within:
        note(f"foveal: the limit of {limit} is not kept: what is left is pinned, in use, or tokens")
    if kept or not evicted.within:
        raise click.exceptions.Exit(FAILED)
