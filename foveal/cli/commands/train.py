"""`foveal train`: train a network from a YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foveal.cli.extras import check_training
from foveal.cli.options import PATH, flag, json_option
from foveal.cli.output import INTERRUPTED, note, print_json, show_seconds
from foveal.cli.progress import LiveBar

if TYPE_CHECKING:
    from foveal.train.measuring import Measured
    from foveal.train.settings import RunConfig
    from foveal.train.snapshot import Position
    from foveal.train.trainer import Progress


@click.command("train")
@click.argument(
    "config",
    type=click.Path(),
    help="A YAML file, or the name of a run that ships: toy, nano, nano-h100, distill-smollm2.",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change a setting: --set tokens=1e6.")
@click.option("--export", type=PATH, help="Do not train: write the newest checkpoint as a model directory.")
@click.option("--export-start", type=PATH, help="Do not train: write the untrained start as a model directory.")
@click.option(
    "--measure", type=click.IntRange(min=1), metavar="STEPS", help="Do not train: time STEPS steps of each stage."
)
@flag("--profile", "With --measure: also which operations take the time.")
@json_option
def command(
    config: str,
    settings: tuple[str, ...],
    export: Path | None,
    export_start: Path | None,
    measure: int | None,
    profile: bool,
    json: bool,
) -> None:
    """Train a network, or go on where the last run stopped. See docs/training.md.

    Ctrl-C saves and ends (with code 130) after the step in work; the same command goes on from there. With several
    processes: torchrun --nproc-per-node N --no-python foveal train CONFIG.
    """
    check_training()
    from foveal.train import launch
    from foveal.train.distill.settings import is_distillation
    from foveal.train.settings import RunConfig

    if is_distillation(launch.find_config(config)):
        _distill(config, settings, export, only_trains=export_start is None and measure is None, json=json)
        return
    run = RunConfig.from_yaml(launch.find_config(config), settings)
    if export is not None or export_start is not None:
        target = launch.export(run, export) if export is not None else launch.export_start(run, export_start or Path())
        print_json({"model": str(target)}) if json else note(f"wrote {target}")
    elif measure is not None:
        _measure(run, measure, profile=profile, json=json)
    else:
        _train(run, json=json)


def _distill(config: str, settings: tuple[str, ...], export: Path | None, *, only_trains: bool, json: bool) -> None:
    """Teach packed entries, or write what was learned."""
    from foveal.cli.output import UserError
    from foveal.train import launch
    from foveal.train.distill.settings import DistillConfig

    if not only_trains:
        raise UserError("--measure and --export-start are for other runs; a distillation has --export FILE")
    run = DistillConfig.from_yaml(launch.find_config(config), settings)
    os.umask(0o077)
    with TrainingBar() as bar:
        trainer = launch.build_distillation(run, bar)
        if export is not None:
            trainer.export(export)
            print_json({"slots": str(export)}) if json else note(f"wrote {export}")
            return
        if trainer.position.step:
            note(f"going on from step {trainer.position.step:,} in {run.out}")
        position, done = trainer.train(), trainer.progress() >= 1
    _ended(run.out, position, trainer.last_values, done=done, json=json)


def _measure(run: RunConfig, steps: int, *, profile: bool, json: bool) -> None:
    from foveal.train.measuring import measure_run

    found = measure_run(run, steps, profile=profile)
    print_json([row.to_dict() for row in found]) if json else _print_measured(found)


def _train(run: RunConfig, *, json: bool) -> None:
    """Train to the end, or until it is stopped (which exits with 130)."""
    from foveal.train import launch
    from foveal.train.parallel import joined

    os.umask(0o077)
    with joined(run.device, run.parallel) as group, TrainingBar(silent=not group.first) as bar:
        trainer = launch.build(run, group, bar)
        if group.first and trainer.position.step:
            note(f"going on from step {trainer.position.step:,} in {run.out}")
        position, done = trainer.train(), trainer.progress() >= 1
    _ended(run.out, position, trainer.last_values, done=done, json=json, silent=not group.first)


def _ended(
    out: str, position: Position, values: Mapping[str, float], *, done: bool, json: bool, silent: bool = False
) -> None:
    if json and not silent:
        facts = {"out": out, "finished": done, "step": position.step, "tokens": position.tokens}
        print_json(facts | {"seconds": position.seconds, "values": values})
    elif not silent:
        state, more = ("finished", "") if done else ("stopped", "; the same command goes on")
        took = f"{position.tokens:,} tokens, {show_seconds(position.seconds)}"
        note(f"{state} at step {position.step:,}: {took}, in {out}{more}")
    if not done:  # `foveal train X && foveal train X --export M` shall not export half a run
        raise click.exceptions.Exit(INTERRUPTED)


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
    names |= {kind: kind for kind in ("repeat", "list", "questions", "notes", "text")}  # of a distillation
    return ", ".join(f"{names[n]} {progress.values[n]:.3f}" for n in names if n in progress.values)


def _print_measured(found: list[Measured]) -> None:
    from foveal.cli.render import results, table

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
