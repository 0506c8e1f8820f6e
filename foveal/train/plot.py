"""A run's curve as a picture: ``python -m foveal.train.plot build/runs/nano/curve.csv curve.png``."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m foveal.train.plot", description=__doc__)
    parser.add_argument("curve", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args(arguments)
    plot(given.curve, given.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
