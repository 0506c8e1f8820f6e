"""`foveal eval`: what a model recalls of long texts, beside what a plain search finds."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.options import PATH, json_option, plot_option, threads_option
from foveal.cli.output import (
    FAILED,
    INTERRUPTED,
    UserError,
    note,
    parse_count,
    parse_counts,
    print_json,
    show_seconds,
)
from foveal.cli.progress import StatusLine
from foveal.cli.progress import describe as describe_reading

if TYPE_CHECKING:
    from rich.table import Table

    from foveal.evals.report import Summary
    from foveal.evals.runner import Runner, Told
    from foveal.evals.session import EvalConfig, Session
    from foveal.memory import Progress


@click.command("eval")
@click.argument("tasks", help="Tasks by name, with commas between them; ruler or all for many.")
@click.option("--length", default="4k", metavar="TOKENS,...", help="Tokens of the texts: 4k,32k,128k,512k,1M.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=20, metavar="N", help="Questions for each task and length."
)
@click.option(
    "--contexts",
    type=click.IntRange(min=1),
    metavar="N",
    help="Texts they share; default: as many as make 128k tokens, at least one.",
)
@click.option("--model", default="nano", metavar="MODEL", help="nano, or a model directory.")
@click.option("--source", type=PATH, help="Folder the texts are made from; default: Python's standard library.")
@click.option("--seed", default=0, metavar="N", help="Another seed makes other texts and questions.")
@click.option(
    "--form",
    default="auto",
    metavar="FORM",
    help="completion (cues that are continued), chat (instructions), or auto (docs/evals.md).",
)
@click.option("--out", type=PATH, help="Folder for results and memories; the same command goes on from there.")
@click.option(
    "--full-context",
    default="0",
    metavar="TOKENS",
    help="Longest text that is also read with attention to all of it; 0: none.",
)
@click.option("--with", "with_", metavar="MODEL", help="story, facts, turns: the model that answers in words.")
@click.option("--zoom", type=click.IntRange(min=1), default=3, metavar="N", help="Places that it is shown.")
@click.option("--teacher", metavar="SOURCE", help="What it was converted from: asked too, as a ceiling (slow).")
@click.option(
    "--systems", metavar="NAME,...", help="Ask only these, with commas between them: zoom, search, window, ceiling ..."
)
@click.option("--endpoint", metavar="URL", help="Ask an OpenAI-compatible server at this address.")
@click.option("--endpoint-model", metavar="MODEL", help="The name it serves the model by.")
@plot_option
@threads_option
@json_option
def command(length: str, full_context: str, plot: Path | None, json: bool, **settings: Any) -> None:
    """Measure recall of long texts by the tasks of docs/evals.md. Ctrl-C keeps what was measured."""
    from foveal.evals.session import EvalConfig
    from foveal.measure.plot import check_plot

    if plot is not None:
        check_plot(plot, "evals")
    config = EvalConfig(
        lengths=parse_counts(length),
        full_up_to=0 if full_context.strip() == "0" else parse_count(full_context),
        endpoint_key=os.environ.get("OPENAI_API_KEY"),
        **settings,
    )
    measured, stopped = _measure(config, plot, json=json)
    where = "run the same command again to go on" if config.out is not None else "give --out to be able to go on"
    if isinstance(stopped, KeyboardInterrupt):
        note(f"interrupted; {where}")
        raise click.exceptions.Exit(INTERRUPTED)
    _tell_problems(measured, stopped, where)


def _measure(config: EvalConfig, plot: Path | None, *, json: bool) -> tuple[dict[str, Any], BaseException | None]:
    """Measure and show it; the document, and what ended it early, if something did."""
    from foveal.evals.session import Session

    with _Status("making texts") as status:
        with Session(config, progress=status, on_reading=status.reading) as session:
            _tell_damaged(session)
            stopped = _run(session.runner)
            measured = session.document()
            status.stop()
            _show(measured, session, plot, json=json)
        return measured, stopped


def _tell_damaged(session: Session) -> None:
    from foveal.evals.results import FILE

    if damaged := session.runner.results.damaged:
        lines = f"{damaged} damaged line{'s' * (damaged > 1)} of {session.folder / FILE}"
        note(f"{lines} passed over; what was there is measured again")


def _show(measured: dict[str, Any], session: Session, plot: Path | None, *, json: bool) -> None:
    from foveal.evals.plot import plot as draw

    if plot is not None and measured["results"]:
        draw(measured, plot)
    if json:
        print_json(measured)
    elif measured["results"]:
        _print(measured, session)


def _run(runner: Runner) -> BaseException | None:
    """What ended it early, if something did."""
    try:
        runner.run()
    except (KeyboardInterrupt, Exception) as stopped:
        return stopped
    return None


def _tell_problems(document: dict[str, Any], stopped: BaseException | None, where: str) -> None:
    """What could not be done and why, on stderr; nothing when all was done. Raises what stopped the run."""
    if stopped is not None:
        if document["results"]:
            note(f"stopped by an error; {where}")
        raise stopped
    texts = Counter((each["message"], each["task"], each["length"]) for each in document["problems"])
    if not texts and not document["results"]:
        raise UserError("nothing was measured")
    messages = {message for message, _, _ in texts}
    if not document["results"] and len(messages) == 1:
        raise UserError(messages.pop())
    for (message, task, length), count in texts.items():
        note(f"{task} at {length:,}: {count} text{'s' * (count > 1)} could not be made: {message}")
    if texts:
        raise click.exceptions.Exit(FAILED)


# ---------------------------------------------------------------------- while it runs


class _Status(StatusLine):
    """How far the run is and what it does, on a terminal; elsewhere a line now and then."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._told = ""

    def __call__(self, told: Told) -> None:
        left = f", {show_seconds(told.seconds_left)} left" if told.seconds_left is not None else ""
        self._told = f"{told.done} of {told.total} samples{left}; {told.doing}"
        self._say(self._told)

    def reading(self, progress: Progress) -> None:
        """Tell how far a text is read."""
        self._say(f"{self._told} {describe_reading(progress)}")

    def _say(self, text: str) -> None:
        self.show(text)
        self.tell(text)


# ---------------------------------------------------------------------- afterwards


def _print(document: dict[str, Any], session: Session) -> None:
    from foveal.cli.render import results
    from foveal.evals.report import summaries

    found = summaries(session.runner)
    about = document["model"]
    by = f", answers by {document['with']['name']}" if "with" in document else ""
    results().print(
        f"{about['name']}{by}, {document['form']} form, seed {document['seed']}, "
        f"texts from {document['source']['path']}\n",
        soft_wrap=True,
    )
    results().print(_table(found))


def _table(found: list[Summary]) -> Table:
    from foveal.cli.render import table

    systems = list(dict.fromkeys(summary.system for summary in found))
    main, others = systems[0], systems[1:]
    shown = table(
        "tokens>", "task", "metric", "n>", "texts>", f"{main}>", "95 %", *(f"{name}>" for name in others), "also"
    )
    by = {(summary.length, summary.task.name, summary.system): summary for summary in found}
    for length, name in dict.fromkeys((summary.length, summary.task.name) for summary in found):
        first = by.get((length, name, main)) or by[length, name, next(s for s in others if (length, name, s) in by)]
        metric = first.task.metric
        cells = [f"{length:,}", name, metric, str(first.n), str(first.contexts)]
        mine = by.get((length, name, main))
        cells += [_number(mine.metrics.get(metric)), _interval(mine.intervals.get(metric))] if mine else ["-", ""]
        for other in others:
            theirs = by.get((length, name, other))
            cells.append(_number(theirs.metrics.get(metric)) if theirs else "-")
        shown.add_row(*cells, _also(first))
    return shown


def _also(summary: Summary) -> str:
    rest = {name: value for name, value in summary.metrics.items() if name != summary.task.metric}
    return ", ".join(f"{name} {_number(value)}" for name, value in rest.items())


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _interval(ends: tuple[float, float] | None) -> str:
    known = ends is not None and all(math.isfinite(end) for end in ends)
    return f"{_number(ends[0])}-{_number(ends[1])}" if ends is not None and known else ""
