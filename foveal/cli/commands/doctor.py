"""`foveal doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.options import json_option, store_option
from foveal.cli.output import FAILED, print_json

_MARKS = {"ok": "ok", "note": "--", "broken": "BROKEN"}


@click.command("doctor")
@store_option
@json_option
def command(folder: Path | None, json: bool) -> int:
    """Tell what this machine has, what is missing, and how to mend it.

    Exits with 1 only when something is broken that is needed: the native library, the model in the box, or a store that
    cannot be opened or holds damaged memories. Nothing is changed.
    """
    from foveal.cli.doctoring import checks
    from foveal.cli.render import results, table

    found = list(checks(folder))
    broken = any(each.state == "broken" for each in found)
    if json:
        print_json({"sound": not broken, "checks": [each.document() for each in found]})
    else:
        shown = table("", "what", "found", "to mend it")
        for each in found:
            shown.add_row(_MARKS[each.state], each.name, each.found, each.mend or "")
        results().print(shown)
    return FAILED if broken else 0
