"""A run's curve as a picture: ``python -m foveal.train.plot build/runs/nano/curve.csv curve.png``."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from foveal.train.distill.rows import KINDS


def read_curve(path: Path) -> dict[str, list[tuple[float, float]]]:
    """A curve's columns as (million tokens, value), without the rows that have no value."""
    columns: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    columns.setdefault(name, []).append((int(row["tokens"]) / 1e6, float(value)))
    return columns


def plot(curve: Path, picture: Path) -> None:
    """Recall on training sections and on packages kept out, and the loss of ordinary text, against tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = read_curve(curve)
    figure, (recall, ordinary) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for name, label in (("recall_accuracy", "training"), ("heldout_recall_accuracy", "packages kept out")):
        recall.plot(*zip(*columns.get(name, [(0.0, float("nan"))]), strict=True), ".-", label=label)
    recall.set_ylabel("recall: share of tokens right")
    recall.set_ylim(0, 1.03)
    recall.legend()
    ordinary.plot(*zip(*columns["ordinary_loss"], strict=True), color="tab:gray")
    ordinary.set_ylabel("ordinary text: nats a token")
    for axes in (recall, ordinary):
        axes.set_xlabel("million tokens")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


_SMOOTHED = 5


def plot_kinds(curve: Path, picture: Path) -> None:
    """A distillation: for each kind of row the running mean of five values, stage by stage, against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with curve.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    stages = sorted({row["stage"] for row in rows})
    figure, panels = pyplot.subplots(1, len(stages), figsize=(5 * len(stages), 3.6), squeeze=False)
    for axes, stage in zip(panels[0], stages, strict=True):
        for kind in KINDS:
            points = [(int(row["step"]), float(row[kind])) for row in rows if row["stage"] == stage and row.get(kind)]
            values = [value for _, value in points]
            recent = [values[max(0, end - _SMOOTHED) : end] for end in range(1, len(values) + 1)]
            axes.plot([step for step, _ in points], [sum(some) / len(some) for some in recent], label=kind)
        axes.set_title(f"stage {stage}")
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.plot", description=__doc__)
    parser.add_argument("curve", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args(arguments)
    with given.curve.open(encoding="utf-8") as file:
        distilled = KINDS[0] in file.readline().strip().split(",")
    (plot_kinds if distilled else plot)(given.curve, given.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
