"""`foveal inspect` and `foveal init`: what a model is made of, and a new one with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import path_option
from foveal.cli.output import UserError, note, print_json, results, show_bytes, table, tell
from foveal.config import PRESETS, ModelConfig, preset

if TYPE_CHECKING:
    from foveal.checkpoint import Summary


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(inspect)
    app.command()(init)


def inspect(
    path: Annotated[str, typer.Argument(help="A model directory, or the name of a preset.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print layers and their kinds, parameters (total and active) and bytes by format of a model.

    A directory is opened and checked; a preset is computed from its numbers alone.
    """
    from foveal.checkpoint import inspect_checkpoint, summarize

    if Path(path).exists():
        summary = inspect_checkpoint(path)
    elif path in PRESETS:
        summary = summarize(preset(path))
    else:
        raise UserError(f"there is no model directory {path}, nor a preset of that name ({', '.join(PRESETS)})")
    if json:
        print_json(summary_document(path, summary))
    else:
        _print(path, summary)


def init(
    preset_name: Annotated[str, typer.Option("--preset", help="Shape of the model: " + ", ".join(PRESETS) + ".")],
    out: Annotated[Path, path_option(help="Directory to write; must not exist or be empty.")],
    dtype: Annotated[
        str, typer.Option(help="bf16, or fp4: FP4 experts and FP8 matrices, as the published models are stored.")
    ] = "bf16",
    seed: Annotated[int, typer.Option(help="Seed of the random weights.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a checkpoint with random weights in the official layout."""
    from foveal.checkpoint import inspect_checkpoint, random_weights, write_checkpoint

    config = _stored_as(preset(preset_name), dtype)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a directory that does not exist or is empty")
    note(f"writing {preset_name} as {dtype} to {out}")
    write_checkpoint(out, config, random_weights(config, seed=seed))
    summary = inspect_checkpoint(out)
    if json:
        print_json(summary_document(str(out), summary))
    else:
        tell(f"{out}: {summary.tensors:,} tensors, {show_bytes(summary.nbytes)}")


def _stored_as(config: ModelConfig, dtype: str) -> ModelConfig:
    if dtype == "bf16":
        return config.replace(expert_dtype="bf16", linear_dtype="bf16")
    if dtype == "fp4":
        return config.replace(expert_dtype="fp4", linear_dtype="fp8", scale_dtype="ue8m0")
    raise typer.BadParameter(f"{dtype!r} is not a storage format; there are bf16 and fp4", param_hint="--dtype")


def summary_document(path: str, summary: Summary) -> dict[str, Any]:
    """The JSON form of a `Summary` (docs/cli.md)."""
    return {
        "path": path,
        "parameters": summary.parameters,
        "active_parameters": summary.active,
        "mtp_parameters": summary.mtp_parameters,
        "tensors": summary.tensors,
        "bytes": summary.nbytes,
        "bytes_by_format": dict(summary.bytes_by_format),
        "layers": [
            {
                "name": layer.name,
                "kind": str(layer.kind),
                "ratio": layer.ratio,
                "routing": "hash" if layer.hashed else "learned",
                "parameters": layer.parameters,
                "bytes": layer.nbytes,
            }
            for layer in summary.layers
        ],
        "config": summary.config.to_dict(),
    }


def _print(path: str, summary: Summary) -> None:
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
    out = results()
    out.print(layers)
    out.print()
    out.print(formats)
    out.print()
    tell(f"{path}: {summary.tensors:,} tensors, {summary.nbytes:,} bytes ({show_bytes(summary.nbytes)})")
    extra = f", and {summary.mtp_parameters:,} in MTP blocks" if summary.mtp_parameters else ""
    tell(f"{summary.parameters:,} parameters, {summary.active:,} active for a token{extra}")
