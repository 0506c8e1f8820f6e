"""`foveal train` and `foveal tokenize`: train a network from a YAML file, and make the token stores it reads."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.options import Json, path_option, place
from foveal.cli.output import INTERRUPTED, UserError, note, print_json, results, show_bytes, show_seconds, table
from foveal.cli.progress import LiveBar

if TYPE_CHECKING:
    from foveal.train.measuring import Measured
    from foveal.train.trainer import Progress

_NEEDED = ("yaml", "tensorboard")
_CONFIG = Annotated[str, typer.Argument(help="A YAML file, or the name of a run that ships: toy, nano, nano-h100.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(train)
    app.command(name="tokenize")(make_store)


def train(
    config: _CONFIG,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting: --set tokens=1e6.")
    ] = None,
    export: Annotated[
        Path | None,
        path_option(help="Do not train: write the newest checkpoint as a model directory."),
    ] = None,
    export_start: Annotated[
        Path | None,
        path_option(help="Do not train: write the untrained start as a model directory."),
    ] = None,
    measure: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Do not train: time STEPS steps of each stage.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="With --measure: also which operations take the time.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a network, or go on where the last run stopped. See docs/training.md.

    Ctrl-C saves and ends (with code 130) after the step in work; the same command goes on from there. With several
    processes: torchrun --nproc-per-node N --no-python foveal train CONFIG.
    """
    _check_extra()
    from foveal.train import launch
    from foveal.train.parallel import joined
    from foveal.train.settings import RunConfig

    run = RunConfig.from_yaml(launch.find_config(config), setting or ())
    if export is not None or export_start is not None:
        target = launch.export(run, export) if export is not None else launch.export_start(run, export_start or Path())
        print_json({"model": str(target)}) if json else note(f"wrote {target}")
        return
    if measure is not None:
        from foveal.train.measuring import measure_run

        found = measure_run(run, measure, profile=profile)
        print_json([row.to_dict() for row in found]) if json else _print_measured(found)
        return
    os.umask(0o077)
    with joined(run.device, run.parallel) as group, TrainingBar(silent=not group.first) as bar:
        trainer = launch.build(run, group, bar)
        if group.first and trainer.position.step:
            note(f"going on from step {trainer.position.step:,} in {run.out}")
        position, done = trainer.train(), trainer.progress() >= 1
    if group.first and json:
        facts = {"out": run.out, "finished": done, "step": position.step, "tokens": position.tokens}
        print_json(facts | {"seconds": position.seconds, "values": trainer.last_values})
    elif group.first:
        state, more = ("finished", "") if done else ("stopped", "; the same command goes on")
        note(
            f"{state} at step {position.step:,}: {position.tokens:,} tokens, {show_seconds(position.seconds)}, in "
            f"{run.out}{more}"
        )
    if not done:  # `foveal train X && foveal train X --export M` shall not export half a run
        raise typer.Exit(INTERRUPTED)


def make_store(
    paths: Annotated[
        list[Path],
        typer.Argument(parser=place, metavar="PATH", help="Files and folders; each file becomes a document."),
    ],
    out: Annotated[
        Path,
        path_option(help="The store: OUT.bin, OUT.idx.npy and OUT.json are written."),
    ],
    tokenizer: Annotated[
        Path | None,
        path_option(help="A tokenizer.json or its folder; default: that of nano."),
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only what this glob matches; may be given again.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Nothing that this glob matches.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it again even if nothing has changed.")] = False,
    json: Json = False,
) -> None:
    """Make the memory-mapped token store that training reads, from files and folders."""
    _check_extra()
    from dataclasses import asdict

    import foveal
    from foveal.train.storing import tokenize

    chosen = tokenizer or Path(foveal.__file__).parent / "weights" / "nano"
    with _StoreBar() as bar:
        stored = tokenize(paths, out, chosen, include=include or (), exclude=exclude or (), told=bar, force=force)
    if json:
        print_json(asdict(stored))
        return
    state = "nothing has changed: kept" if stored.kept else "wrote"
    rest = f", {stored.skipped:,} skipped" if stored.skipped else ""
    note(
        f"{state} {out}.bin: {stored.tokens:,} tokens in {stored.documents:,} documents "
        f"({show_bytes(stored.text_bytes)} of text{rest})"
    )


def _check_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"training needs packages that are not installed ({', '.join(missing)}): pip install 'foveal[train]'"
        )


# ---------------------------------------------------------------------- while it runs


class TrainingBar(LiveBar):
    """Shows a run's `Progress` as it comes."""

    def __init__(self, *, silent: bool = False) -> None:
        super().__init__("starting", silent=silent, at_once=True)
        self._values = ""

    def __call__(self, progress: Progress) -> None:
        if progress.values:
            self._values = describe_values(progress)
        stage, line = f"stage {progress.stage}", f"{describe(progress)}, {self._values}"
        self.show(stage, progress.done, 1.0, line)
        if progress.values:
            self.tell(f"{stage}, {line}")


def describe(progress: Progress) -> str:
    """``step 120, 0.25M tokens, 820 tok/s, 3 min 20 s left``."""
    position = progress.position
    parts = [f"step {position.step:,}", f"{position.tokens / 1e6:.2f}M tokens"]
    parts += [f"{progress.tokens_per_second:,.0f} tok/s", f"{show_seconds(progress.seconds_left)} left"]
    return ", ".join(parts)


def describe_values(progress: Progress) -> str:
    """``loss 3.412, recall 0.921``: what the newest row of the curve says, as far as it is there."""
    names = {
        "loss": "loss", "recall_accuracy": "recall", "heldout_recall_accuracy": "held out", "index_kl": "index KL"
    }  # fmt: skip
    return ", ".join(f"{names[n]} {progress.values[n]:.3f}" for n in names if n in progress.values)


class _StoreBar(LiveBar):
    """Bytes done of all, tokens, and time left."""

    def __init__(self) -> None:
        super().__init__("tokenizing")
        self._began = time.monotonic()

    def __call__(self, done: int, total: int, tokens: int, path: str) -> None:
        left = (time.monotonic() - self._began) * max(0, total - done) / max(1, done)
        count = f"{show_bytes(done)} of {show_bytes(total)}, {tokens:,} tokens, {show_seconds(left)} left"
        self.show("tokenizing", done, total, count, path)
        self.tell(f"{count}, {path}")


def _print_measured(found: list[Measured]) -> None:
    columns = ["stage>", "tokens a step>", "tok/s>", "GFLOP a token>", "GFLOP/s>", "ceiling>", "fraction>"]
    shown = table(*columns, "forward>", "backward>", "optimiser>")
    for row in found:
        cells = [
            f"{row.stage}", f"{row.tokens:,}", f"{row.tokens_per_second:,.0f}", f"{row.flops_per_token / 1e9:.3f}",
            f"{row.flops_per_second / 1e9:,.0f}", f"{row.ceiling / 1e9:,.0f}", f"{row.fraction:.0%}",
            show_seconds(row.forward), show_seconds(row.backward), show_seconds(row.optimizer),
        ]  # fmt: skip
        shown.add_row(*cells)
    out = results()
    out.print(shown)
    for row in found:
        if row.operations:
            out.print()
            title = f"stage {row.stage}: operations"
            out.print(table(title, "share>", rows=[(name, f"{part:.1%}") for name, part in row.operations]))
