"""`foveal inspect`: what a model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveal.cli.completing import presets
from foveal.cli.models import summary_document
from foveal.cli.options import json_option
from foveal.cli.output import UserError, print_json, show_bytes, tell
from foveal.config import PRESETS, preset

if TYPE_CHECKING:
    from foveal.checkpoint import Summary


@click.command("inspect")
@click.argument("path", shell_complete=presets, help="A model directory, or the name of a preset.")
@json_option
def command(path: str, json: bool) -> None:
    """Print layers, parameters and bytes by format of a model. Parameters are total and active.

    A directory is opened and checked; a preset is computed from its numbers alone.
    """
    from foveal.checkpoint import inspect_checkpoint, summarize
    from foveal.engine import own_model

    if Path(path).exists():
        summary = inspect_checkpoint(path)
    elif path in PRESETS:
        summary = summarize(preset(path))
    elif (own := own_model(path)) is not None:
        summary = inspect_checkpoint(own)
    else:
        raise UserError(f"there is no model directory {path}, nor a preset of that name ({', '.join(PRESETS)})")
    if json:
        print_json(summary_document(path, summary))
    else:
        _print(path, summary)


def _print(path: str, summary: Summary) -> None:
    from foveal.cli.render import print_blocks, table

    layers = table("layer", "kind", "ratio>", "routing", "parameters>", "bytes>")
    for layer in summary.layers:
        layers.add_row(
            layer.name,
            str(layer.kind),
            str(layer.ratio or "-"),
            "hash" if layer.hashed else "learned",
            f"{layer.parameters:,}",
            show_bytes(layer.nbytes),
        )
    formats = table("format", "bytes>", "share>")
    for name, size in summary.bytes_by_format.items():
        formats.add_row(name, show_bytes(size), f"{size / summary.nbytes:.1%}")
    print_blocks(layers, formats)
    tell(f"{path}: {summary.tensors:,} tensors, {summary.nbytes:,} bytes ({show_bytes(summary.nbytes)})")
    extra = f", and {summary.mtp_parameters:,} in MTP blocks" if summary.mtp_parameters else ""
    tell(f"{summary.parameters:,} parameters, {summary.active:,} active for a token{extra}")
