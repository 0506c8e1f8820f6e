"""`foveal init`: a new model with random weights."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.completing import presets
from foveal.cli.models import summary_document
from foveal.cli.options import PATH, json_option
from foveal.cli.output import UserError, note, print_json, show_bytes, tell
from foveal.config import PRESETS, ModelConfig
from foveal.config import preset as shape_of


@click.command("init")
@click.option(
    "--preset",
    required=True,
    shell_complete=presets,
    metavar="PRESET",
    help="Shape of the model: " + ", ".join(PRESETS) + ".",
)
@click.option("--out", type=PATH, required=True, help="Directory to write; must not exist or be empty.")
@click.option(
    "--dtype",
    default="bf16",
    metavar="FORMAT",
    help="bf16, or fp4: FP4 experts and FP8 matrices, as the published models are stored.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Seed of the random weights.")
@json_option
def command(preset: str, out: Path, dtype: str, seed: int, json: bool) -> None:
    """Write a checkpoint with random weights in the official layout."""
    from foveal.checkpoint import inspect_checkpoint, random_weights, write_checkpoint

    config = _stored_as(shape_of(preset), dtype)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a directory that does not exist or is empty")
    note(f"writing {preset} as {dtype} to {out}")
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
    raise click.BadParameter(f"{dtype!r} is not a storage format; there are bf16 and fp4", param_hint="--dtype")
