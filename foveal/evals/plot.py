"""A picture of the results: every task's main metric over the length of the text, by system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveal.evals.errors import EvalError
from foveal.measure.plot import check_plot, plain_style

_ACROSS = 4


def plot(document: dict[str, Any], path: Path) -> None:
    """Draw the document of `foveal eval` to `path`. Raises `EvalError` when there is nothing to draw, and what
    `check_plot` raises."""
    check_plot(path, "evals")
    rows = document["results"]
    if not rows:
        raise EvalError("there is nothing to draw: nothing was measured")
    with plain_style():
        _draw_all(document, path)


def _draw_all(document: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    rows = document["results"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    across = min(_ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    figure = Figure(figsize=(3.4 * across, 2.7 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, task in zip(axes, tasks, strict=False):
        _draw(axis, task, [row for row in rows if row["task"] == task])
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    figure.suptitle(f"{document['model']['name']}, {document['form']} form")
    figure.savefig(path, dpi=130)


def _draw(axis: Any, task: str, rows: list[dict[str, Any]]) -> None:
    metric = rows[0]["metric"]
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system and metric in row]
        lengths, means = [row["length"] for row in mine], [row[metric] for row in mine]
        ends = [row["intervals"][metric] for row in mine]
        off = [[max(0.0, m - (e[0] or m)) for m, e in zip(means, ends, strict=True)]]
        off.append([max(0.0, (e[1] or m) - m) for m, e in zip(means, ends, strict=True)])
        axis.errorbar(lengths, means, yerr=off, marker="o", capsize=3, label=system)
    axis.set_xscale("log", base=2)
    axis.set_title(task, fontsize="small")
    axis.set_ylabel(metric, fontsize="small")
    axis.set_xlabel("tokens", fontsize="small")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")
