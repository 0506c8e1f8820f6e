"""`foveal bench`: how fast a model reads and writes at any depth, and what memory that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import MOST_THREADS, Json, path_option
from foveal.cli.output import (
    UserError,
    note,
    notes,
    parse_count,
    plain,
    print_json,
    results,
    show_bytes,
    show_seconds,
    table,
)
from foveal.config import PRESETS

if TYPE_CHECKING:
    from rich.table import Table

    from foveal.measure import Settings

_DEPTHS = "512,4096,32768,131072,1048576"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(bench)


def bench(
    model: Annotated[str | None, typer.Option(help="A model directory, or nano.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Or a shape, with random weights: " + ", ".join(PRESETS) + ".")
    ] = None,
    depths: Annotated[str, typer.Option(help="Tokens before the measurement; 4k, 128k and 1M work too.")] = _DEPTHS,
    jump: Annotated[
        bool, typer.Option("--jump", help="Fill the cache with made-up entries instead of reading up to each depth.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads; default: all cores.")
    ] = None,
    kv: Annotated[str | None, typer.Option(help="Entries in the cache: bf16 or fp8; default: the engine's.")] = None,
    index: Annotated[str | None, typer.Option(help="Index keys: bf16, fp8 or fp4; default: to match.")] = None,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode in a repetition.")] = 64,
    prefill_tokens: Annotated[int, typer.Option(min=1, help="Tokens to read after a jump.")] = 512,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions; the median counts.")] = 5,
    plot: Annotated[Path | None, path_option(help="Draw it too, to a .png, .svg or .pdf file.")] = None,
    json: Json = False,
) -> None:
    """Measure reading and decoding at growing depths: tokens a second, time by operation, cache, peak memory."""
    from foveal.measure import Settings, cores, measure, openable, preset_model
    from foveal.measure.plot import check_plot
    from foveal.measure.plot import plot as draw

    if (model is None) == (preset is None):
        raise typer.BadParameter("give a model or a preset, one of the two", param_hint="--model / --preset")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    wanted = Settings(
        model="",
        threads=threads or cores(),
        depths=parse_depths(depths),
        jump=jump,
        kv=kv,
        index=index,
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        repetitions=repetitions,
    )
    if plot is not None:
        check_plot(plot)
    with _Status() as status:
        chosen = preset_model(preset, say=status) if preset is not None else openable(model or "")
        with chosen as folder:
            settings = Settings.from_dict(wanted.to_dict() | {"model": str(folder)})
            document = measure(settings, name=preset or str(model), say=status, each=status.row)
    if plot is not None:
        draw(document, plot)
    if json:
        print_json(document)
    else:
        _print(document, wanted)


def parse_depths(text: str) -> tuple[int, ...]:
    """``512,4k,1M`` as numbers, ascending, each once. Raises `typer.BadParameter`."""
    return tuple(sorted({parse_count(part) for part in text.split(",")}))


# ---------------------------------------------------------------------- while it runs


class _Status:
    """One line on stderr that changes, on a terminal; elsewhere one line for each depth. A context manager."""

    def __init__(self) -> None:
        self._console = notes()
        self._status = self._console.status("starting") if self._console.is_terminal else None

    def __enter__(self) -> _Status:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, text: str) -> None:
        if self._status is not None:
            self._status.update(plain(text))

    def row(self, row: dict[str, Any]) -> None:
        """Tell what was measured at one depth."""
        reading, decoding = (_rate(row[name]) for name in ("prefill_tok_s", "decode_tok_s"))
        note(f"at {row['depth']:,} tokens: reading {reading} tok/s, decoding {decoding} tok/s")


# ---------------------------------------------------------------------- afterwards


def _print(document: dict[str, Any], settings: Settings) -> None:
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
    split = [row["ops"] or {} for row in rows]
    names = sorted({name for ops in split for name in ops}, key=lambda name: -max(ops.get(name, 0.0) for ops in split))
    shown = table("ms a decoded token", *(f"at {row['depth']:,}>" for row in rows))
    for name in names:
        shown.add_row(name, *(f"{ops[name]:.4f}" if name in ops else "-" for ops in split))
    return shown


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
