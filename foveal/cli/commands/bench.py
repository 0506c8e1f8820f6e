"""`foveal bench`: how fast a model reads and writes at any depth, and what memory that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.completing import presets
from foveal.cli.options import flag, json_option, plot_option, threads_option
from foveal.cli.output import UserError, note, parse_counts, print_json, show_bytes, show_seconds
from foveal.cli.progress import StatusLine
from foveal.config import PRESETS

if TYPE_CHECKING:
    from rich.table import Table

    from foveal.measure import Settings

_DEPTHS = "512,4096,32768,131072,1048576"


@click.command("bench")
@click.option("--model", metavar="MODEL", help="A model directory, or nano.")
@click.option(
    "--preset",
    shell_complete=presets,
    metavar="PRESET",
    help="Or a shape, with random weights: " + ", ".join(PRESETS) + ".",
)
@click.option("--depths", default=_DEPTHS, metavar="TOKENS,...", help="How many tokens stand before what is measured.")
@flag("--jump", "Fill the cache with made-up entries instead of reading up to each depth.")
@threads_option
@click.option("--kv", metavar="FORMAT", help="Entries in the cache: bf16 or fp8; default: the engine's.")
@click.option("--index", metavar="FORMAT", help="Index keys: bf16, fp8 or fp4; default: to match.")
@click.option(
    "--decode-tokens",
    type=click.IntRange(min=1),
    default=64,
    metavar="TOKENS",
    help="Tokens to decode in a repetition.",
)
@click.option(
    "--prefill-tokens", type=click.IntRange(min=1), default=512, metavar="TOKENS", help="Tokens to read after a jump."
)
@click.option(
    "--repetitions", type=click.IntRange(min=1), default=5, metavar="N", help="Repetitions; the median counts."
)
@plot_option
@json_option
def command(
    model: str | None,
    preset: str | None,
    depths: str,
    threads: int | None,
    plot: Path | None,
    json: bool,
    **how: Any,
) -> None:
    """Measure reading and decoding at growing depths.

    It tells tokens a second, time by operation, the size of the cache, and peak memory.
    """
    from foveal.measure import Settings, cores
    from foveal.measure.plot import check_plot
    from foveal.measure.plot import plot as draw

    if (model is None) == (preset is None):
        raise click.BadParameter("give a model or a preset, one of the two", param_hint="--model / --preset")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    wanted = Settings(model="", threads=threads or cores(), depths=parse_counts(depths), **how)
    if plot is not None:
        check_plot(plot)
    measured = _measure(wanted, model, preset)
    if plot is not None:
        draw(measured, plot)
    if json:
        print_json(measured)
    else:
        _print(measured, wanted)


def _measure(wanted: Settings, model: str | None, preset: str | None) -> dict[str, Any]:
    """Measure `model`, or else `preset` with random weights; the document of `foveal.measure`."""
    from foveal.measure import Settings, measure, openable, preset_model

    with _Status("starting") as status:
        chosen = preset_model(preset, say=status.show) if preset is not None else openable(model or "")
        with chosen as folder:
            settings = Settings.from_dict(wanted.to_dict() | {"model": str(folder)})
            return measure(settings, name=preset or str(model), say=status.show, each=status.row)


class _Status(StatusLine):
    """What is measured now; what was measured at one depth is a line of its own."""

    def row(self, row: dict[str, Any]) -> None:
        """Tell what was measured at one depth."""
        reading, decoding = (_rate(row[name]) for name in ("prefill_tok_s", "decode_tok_s"))
        note(f"at {row['depth']:,} tokens: reading {reading} tok/s, decoding {decoding} tok/s")


# ---------------------------------------------------------------------- afterwards


def _print(document: dict[str, Any], settings: Settings) -> None:
    from foveal.cli.render import results

    out, model, machine = results(), document["model"], document["machine"]
    how = "after a jump over made-up entries" if settings.jump else "read from nothing"
    out.print(
        f"{model['name']}: {model['parameters']:,} parameters, {show_bytes(model['weight_bytes'])} of weights; "
        f"cache {document['cache']}; {how}\n{machine['cpu']}, {settings.threads} threads\n",
        soft_wrap=True,
    )
    out.print(_rows(document["rows"], settings))
    if any(row["ops"] for row in document["rows"]):
        out.print()
        out.print(_ops(document["rows"]))
    busy = max((row["other_cores"] or 0.0 for row in document["rows"]), default=0.0)
    if busy > 0.1:
        out.print(f"\nother processes kept up to {busy:.1f} cores busy meanwhile: the rates are lower for it")


def _rows(rows: list[dict[str, Any]], settings: Settings) -> Table:
    from foveal.cli.render import table

    columns = ["depth>", "reading tok/s>", "decoding tok/s>", "ms/token>", "90 %>", "cache>", "peak resident>"]
    shown = table(*columns, *([] if settings.jump else ["read in>"]))
    for row in rows:
        cells = [
            f"{row['depth']:,}",
            _rate(row["prefill_tok_s"]),
            _rate(row["decode_tok_s"]),
            f"{row['decode_ms_p50']:.3g}",
            f"{row['decode_ms_p90']:.3g}",
            show_bytes(row["cache_bytes"]),
            show_bytes(row["peak_bytes"]),
        ]
        shown.add_row(*cells, *([] if settings.jump else [show_seconds(row["read_seconds"])]))
    return shown


def _ops(rows: list[dict[str, Any]]) -> Table:
    from foveal.cli.render import table

    split = [row["ops"] or {} for row in rows]
    names = sorted({name for ops in split for name in ops}, key=lambda name: -max(ops.get(name, 0.0) for ops in split))
    shown = table("ms a decoded token", *(f"at {row['depth']:,}>" for row in rows))
    for name in names:
        shown.add_row(name, *(f"{ops[name]:.4f}" if name in ops else "-" for ops in split))
    return shown


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
