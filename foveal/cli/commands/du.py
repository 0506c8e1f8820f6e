"""`foveal du`: what memories take on disk."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.memories import tell_lost
from foveal.cli.opening import opened
from foveal.cli.options import json_option, store_option
from foveal.cli.output import note, print_json, show_bytes


@click.command("du")
@store_option
@json_option
def command(folder: Path | None, json: bool) -> None:
    """Show the bytes of each memory, its own and shared ones. Shared are those that other memories use too."""
    from foveal.store.usage import disk_bytes, usage

    store = opened(folder)
    used, total, lost = usage(store), disk_bytes(store), sum(store.packs.lost.sizes().values())
    if json:
        listed = [{"name": name, "own": use.own, "shared": use.shared} for name, use in sorted(used.items())]
        print_json({"store": str(store.folder), "bytes": total, "given_up_bytes": lost, "memories": listed})
        return
    from foveal.cli.render import results, table

    shown = table("memory", "own>", "shared>")
    for name, use in sorted(used.items(), key=lambda item: -item[1].own):
        shown.add_row(name, show_bytes(use.own), show_bytes(use.shared))
    results().print(shown)
    note(f"{show_bytes(total)} in {store.folder}")
    tell_lost(lost)
