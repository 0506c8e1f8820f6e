"""Samples to numbers: the mean of every metric with its interval, by length, task and system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from foveal.evals.results import Sample
from foveal.evals.runner import Runner
from foveal.evals.scoring import interval
from foveal.evals.task import Task

PLACES = 10
"""Parts of a text by which the results are split."""


@dataclass(frozen=True)
class Summary:
    """One task at one length, one system. `metrics` are means, `intervals` their 95 % intervals; `by_place` has for
    each tenth of the text where an answer stood the mean of the main metric and the number of samples."""

    task: Task
    length: int
    system: str
    form: str
    n: int
    planned: int
    contexts: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    by_place: dict[int, tuple[float, int]]

    def to_dict(self) -> dict[str, Any]:
        """One row of ``results`` in the JSON (docs/evals.md)."""
        return {
            "task": self.task.name,
            "length": self.length,
            "system": self.system,
            "form": self.form,
            "n": self.n,
            "planned": self.planned,
            "contexts": self.contexts,
            "metric": self.task.metric,
            **{name: round(value, 6) for name, value in self.metrics.items()},
            "intervals": {name: [_rounded(low), _rounded(high)] for name, (low, high) in self.intervals.items()},
            "by_place": {
                f"{tenth / PLACES:.1f}": {"mean": round(mean, 6), "n": count}
                for tenth, (mean, count) in sorted(self.by_place.items())
            },
        }


def summaries(runner: Runner) -> list[Summary]:
    """Everything there is so far, in the order of the plan."""
    groups: dict[tuple[str, int, str], list[Any]] = {}
    planned: dict[tuple[str, int, str], int] = {}
    tasks = {}
    for job in runner.jobs():
        tasks[job.task.name] = job.task
        for key in runner.keys(job):
            group = (job.task.name, job.length, key.system)
            groups.setdefault(group, []).append(key)
            planned[group] = planned.get(group, 0) + job.questions
    found = []
    for (name, length, system), keys in groups.items():
        task, rows = tasks[name], runner.results.of(keys)
        if rows:
            form = runner.experiment.form_of(task)
            found.append(_summary(task, length, system, form, rows, planned[name, length, system]))
    return found


def _summary(task: Task, length: int, system: str, form: str, rows: Sequence[Sample], planned: int) -> Summary:
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    values = {name: [row.metrics[name] for row in rows if name in row.metrics] for name in names}
    places: dict[int, list[float]] = {}
    for row in rows:
        if task.metric in row.metrics and "place" in row.detail:
            tenth = min(PLACES - 1, int(row.detail["place"] * PLACES))
            places.setdefault(tenth, []).append(row.metrics[task.metric])
    return Summary(
        task=task,
        length=length,
        system=system,
        form=form,
        n=len(rows),
        planned=planned,
        contexts=len({row.key.context for row in rows}),
        metrics={name: fmean(each) for name, each in values.items()},
        intervals={name: interval(each) for name, each in values.items()},
        by_place={tenth: (fmean(each), len(each)) for tenth, each in places.items()},
    )


def document(runner: Runner, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON of `foveal eval`: `about` first, then ``results``. A single row's fields stand at the top as well."""
    made = summaries(runner)
    rows = [summary.to_dict() for summary in made]
    complete = all(runner.results.finished(key) for job in runner.jobs() for key in runner.keys(job))
    asked = [row for row in rows if row["system"] not in ("search", "full_context")]
    top = asked[0] if len(asked) == 1 else {}
    problems = [asdict(problem) for problem in runner.problems]
    return {**about, **top, "complete": complete, "problems": problems, "results": rows}


def _rounded(value: float) -> float | None:
    """None for an end that one sample does not tell."""
    return round(value, 6) if math.isfinite(value) else None
