"""`foveal eval`: what a model recalls of long texts, beside what a plain search finds."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import Json, Threads, path_option
from foveal.cli.output import (
    FAILED,
    INTERRUPTED,
    UserError,
    note,
    notes,
    parse_count,
    plain,
    print_json,
    results,
    show_seconds,
    table,
)
from foveal.cli.progress import LINE_EVERY
from foveal.cli.progress import describe as describe_reading

if TYPE_CHECKING:
    from rich.table import Table

    from foveal.evals.report import Summary
    from foveal.evals.runner import Runner, Told
    from foveal.evals.session import Session
    from foveal.memory import Progress


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("eval")(evaluate)


def evaluate(
    tasks: Annotated[str, typer.Argument(help="Tasks by name, with commas between them; ruler or all for many.")],
    length: Annotated[str, typer.Option(help="Tokens of the texts: 4k,32k,128k,512k,1M.")] = "4k",
    samples: Annotated[int, typer.Option(min=1, help="Questions for each task and length.")] = 20,
    contexts: Annotated[
        int | None, typer.Option(min=1, help="Texts they share; default: as many as make 128k tokens, at least one.")
    ] = None,
    model: Annotated[str, typer.Option(help="nano, or a model directory.")] = "nano",
    source: Annotated[
        Path | None,
        path_option(help="Folder the texts are made from; default: Python's standard library."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed makes other texts and questions.")] = 0,
    form: Annotated[
        str, typer.Option(help="completion (cues that are continued), chat (instructions), or auto (docs/evals.md).")
    ] = "auto",
    out: Annotated[
        Path | None,
        path_option(help="Folder for results and memories; the same command goes on from there."),
    ] = None,
    full_context: Annotated[
        str, typer.Option(help="Longest text that is also read with attention to all of it; 0: none.")
    ] = "0",
    endpoint: Annotated[str | None, typer.Option(help="Ask an OpenAI-compatible server at this address.")] = None,
    endpoint_model: Annotated[str | None, typer.Option(help="The name it serves the model by.")] = None,
    plot: Annotated[Path | None, path_option(help="Draw it too, to a .png, .svg or .pdf file.")] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Measure recall of long texts by the tasks of docs/evals.md. Ctrl-C keeps what was measured."""
    from foveal.evals.plot import plot as draw
    from foveal.evals.results import FILE
    from foveal.evals.session import Session
    from foveal.measure.plot import check_plot

    if plot is not None:
        check_plot(plot, "evals")
    lengths = tuple(sorted({parse_count(part) for part in length.split(",")}))
    with ExitStack() as stack:
        status = stack.enter_context(_Status())
        folder = (
            out if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foveal-eval-")))
        )
        session = stack.enter_context(
            Session(
                tasks,
                lengths,
                samples=samples,
                contexts=contexts,
                seed=seed,
                form=form,
                model=model,
                source=source,
                folder=folder,
                keep=out is not None,
                threads=threads,
                full_up_to=0 if full_context.strip() == "0" else parse_count(full_context),
                endpoint=endpoint,
                endpoint_model=endpoint_model,
                endpoint_key=os.environ.get("OPENAI_API_KEY"),
                progress=status,
                on_reading=status.reading,
            )
        )
        if damaged := session.runner.results.damaged:
            lines = f"{damaged} damaged line{'s' * (damaged > 1)} of {folder / FILE}"
            note(f"{lines} passed over; what was there is measured again")
        stopped = _run(session.runner)
        document = session.document()
        status.stop()
        if plot is not None and document["results"]:
            draw(document, plot)
        if json:
            print_json(document)
        elif document["results"]:
            _print(document, session)
    where = "run the same command again to go on" if out is not None else "give --out to be able to go on"
    if isinstance(stopped, KeyboardInterrupt):
        note(f"interrupted; {where}")
        raise typer.Exit(INTERRUPTED)
    _tell_problems(document, stopped, where)


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
        raise typer.Exit(FAILED)


# ---------------------------------------------------------------------- while it runs


class _Status:
    """One line on stderr that changes, on a terminal; elsewhere a line now and then. A context manager."""

    def __init__(self) -> None:
        self._console = notes()
        self._status = self._console.status("making texts") if self._console.is_terminal else None
        self._told = ""
        self._next_line = time.monotonic() + LINE_EVERY

    def __enter__(self) -> _Status:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing more is shown."""
        if self._status is not None:
            self._status.stop()

    def __call__(self, told: Told) -> None:
        left = f", {show_seconds(told.seconds_left)} left" if told.seconds_left is not None else ""
        self._told = f"{told.done} of {told.total} texts{left}; {told.doing}"
        self._show(self._told)

    def reading(self, progress: Progress) -> None:
        """Tell how far a text is read."""
        self._show(f"{self._told} {describe_reading(progress)}")

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(plain(text))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            note(text)


# ---------------------------------------------------------------------- afterwards


def _print(document: dict[str, Any], session: Session) -> None:
    from foveal.evals.report import summaries

    found = summaries(session.runner)
    about = document["model"]
    results().print(
        f"{about['name']}, {document['form']} form, seed {document['seed']}, texts from {document['source']['path']}\n",
        soft_wrap=True,
    )
    results().print(_table(found))


def _table(found: list[Summary]) -> Table:
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
