"""`foveal sync`: bring a memory up to date with its source, after telling what each way costs."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.memories import tell_incomplete
from foveal.cli.opening import keep_within, open_engine, opened, telling_of_imports
from foveal.cli.options import (
    PATH_TEXT,
    durability_option,
    flag,
    json_option,
    model_option,
    name_argument,
    store_limit_option,
    store_option,
    threads_option,
)
from foveal.cli.output import INTERRUPTED, UserError, note, parse_limit, print_json, show_bytes, show_seconds
from foveal.cli.progress import Interruption, ReadingBar

if TYPE_CHECKING:
    from foveal.memory import Memory, SyncPlan
    from foveal.memory.syncing import Mode

MOST_SHOWN = 10
"""Paths of each kind that are listed."""


@click.command("sync")
@name_argument
@flag("--append", "Read new versions behind all else, with a note that they replace.")
@flag("--rebuild", "Read the source anew from the first change on; drops earlier versions.")
@flag("--dry-run", "Only tell what changed and what it costs.")
@click.option(
    "--source",
    multiple=True,
    type=PATH_TEXT,
    metavar="PATH",
    help="Where the source lies now, if it was moved; once for each of its paths. It is remembered.",
)
@model_option
@store_option
@store_limit_option
@durability_option
@threads_option
@json_option
def command(
    name: str,
    append: bool,
    rebuild: bool,
    dry_run: bool,
    source: tuple[str, ...],
    model: str | None,
    folder: Path | None,
    store_limit: str | None,
    durability: str,
    threads: int | None,
    json: bool,
) -> None:
    """Bring memory NAME up to date with its files. Tells first what --append and --rebuild cost.

    With neither, a terminal is asked; else it appends, unless rebuilding reads at most twice as much or more than a
    quarter of the memory would be of earlier versions.
    """
    from foveal.memory import Memory, memory_info
    from foveal.store.contexts import claim

    given = _given(append, rebuild)
    parse_limit(store_limit)  # wrong usage, before anything is read
    store = opened(folder, durability=durability)
    engine = open_engine(model, threads, memory_info(name, store))
    bar = ReadingBar()
    alone = nullcontext() if dry_run else claim(store, name)
    with alone, Interruption(bar).watch() as stop, Memory.load(engine, name, root=store) as memory:
        moved = bool(source) and _move(memory, source)
        plan = _plan(memory, bar, moved=bool(source))
        if not json:
            _tell(memory, plan)
        mode = None if dry_run else _choose(plan, given, ask=not json)
        done = _sync(memory, plan, mode, bar, stop)
        if done or (moved and not dry_run):
            memory.save(root=store)
            keep_within(store, store_limit)
        if json:
            print_json(report(memory, plan, done))
        _conclude(memory, done)


def _given(append: bool, rebuild: bool) -> Mode | None:
    """The way that was asked for."""
    if append and rebuild:
        raise click.BadParameter("give --append or --rebuild, not both")
    return "append" if append else "rebuild" if rebuild else None


def _sync(memory: Memory, plan: SyncPlan, mode: Mode | None, bar: ReadingBar, stop: Interruption) -> Mode | None:
    """Do it, if there is anything to do; the way that was gone."""
    if mode is None or not plan.is_needed(mode):
        return None
    from foveal.memory.memory_store import SAVE_EVERY

    with bar, telling_of_imports(memory):
        memory.sync(mode, plan=plan, progress=bar, should_stop=stop, save_every=SAVE_EVERY)
    return mode


def _move(memory: Memory, source: tuple[str, ...]) -> bool:
    """Look for the memory's source at `source` from now on; says whether that is another place."""
    before = memory.options
    now = before.at(source)
    if now.once_only:
        raise UserError("a source can be compared again only if it is a file or a folder; name one")
    if len(now.named) != len(before.named):
        raise UserError(
            f"memory {memory.name} was read from {len(before.named)} paths; give --source for each, in their order"
        )
    memory.options = now
    return before != now


def _plan(memory: Memory, bar: ReadingBar, *, moved: bool) -> SyncPlan:
    from foveal.sources import SourceError

    try:
        with bar, telling_of_imports(memory):
            return memory.plan_sync(progress=bar)
    except SourceError as error:
        hint = "" if moved else f"; if the source of {memory.name} was moved, give --source PATH"
        raise UserError(f"{error}{hint}") from error


def _choose(plan: SyncPlan, given: Mode | None, *, ask: bool) -> Mode | None:
    """The way that was asked for, or that the person names now, or the recommended one; None to leave it."""
    if given is not None or plan.up_to_date:
        return given
    return _ask(plan.recommended) if ask and _on_terminal() else plan.recommended


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(recommended: Mode) -> Mode | None:
    """What the person says; the beginning of a word is enough."""
    ways: dict[str, Mode | None] = {"append": "append", "rebuild": "rebuild", "none": None}
    while True:
        try:
            answer = click.prompt("append, rebuild, or none?", default=recommended, err=True).strip().lower()
        except (click.Abort, KeyboardInterrupt):
            raise click.exceptions.Exit(INTERRUPTED) from None
        for way, mode in ways.items():
            if answer and way.startswith(answer):
                return mode


# ---------------------------------------------------------------------- what is told


def report(memory: Memory, plan: SyncPlan, done: Mode | None) -> dict[str, Any]:
    """The JSON of `foveal sync` (docs/cli.md)."""
    return {
        "name": memory.name,
        "source": memory.options.source,
        "sources": list(memory.options.named),
        "up_to_date": plan.up_to_date,
        "changed": list(plan.changed),
        "new": list(plan.new),
        "removed": [{"path": skip.path, "reason": skip.reason} for skip in plan.removed],
        "outdated": plan.outdated,
        "costs": {mode: _rounded(asdict(cost)) for mode, cost in plan.costs.items()},
        "recommended": plan.recommended,
        "done": done,
        "complete": memory.complete,
        "tokens": memory.length,
        "source_tokens": memory.totals.tokens,
        "reused_tokens": memory.reused,
        "encodings": [asdict(reading) for reading in memory.encodings],
        "notes": list(memory.notes),
    }


def _rounded(cost: dict[str, Any]) -> dict[str, Any]:
    return cost | {"seconds": None if cost["seconds"] is None else round(cost["seconds"], 3)}


def _tell(memory: Memory, plan: SyncPlan) -> None:
    """What changed and what both ways cost, on stderr: it comes before the deed and before the question."""
    for line in memory.notes:
        note(line)
    if plan.up_to_date:
        note(f"{memory.name}: nothing has changed in {memory.options.source}")
        if plan.outdated:
            note(f"{plan.outdated:,} of its {memory.length:,} tokens are of earlier versions; --rebuild drops them")
        return
    for what, paths in (
        ("changed", plan.changed),
        ("new" if memory.complete else "not read yet", plan.new),
        ("removed", [_removed(skip.path, skip.reason) for skip in plan.removed]),
    ):
        if paths:
            more = f" and {len(paths) - MOST_SHOWN:,} more" if len(paths) > MOST_SHOWN else ""
            note(f"{what} ({len(paths):,}): {', '.join(paths[:MOST_SHOWN])}{more}")
    _tell_costs(plan)


def _tell_costs(plan: SyncPlan) -> None:
    from foveal.cli.render import notes, table

    shown = table("", "tokens to read>", "time>", "added to the store>", "tokens afterwards>", "of earlier versions>")
    for mode, cost in plan.costs.items():
        time = "-" if cost.seconds is None else show_seconds(cost.seconds)
        counts = (f"{cost.tokens:,}", f"{cost.outdated:,}")
        shown.add_row(f"--{mode}", f"{cost.read:,}", time, show_bytes(cost.store_bytes), *counts)
    notes().print(shown)


def _removed(path: str, reason: str) -> str:
    return path if reason == "deleted" else f"{path} ({reason})"


def _conclude(memory: Memory, done: Mode | None) -> None:
    if done is None:
        return
    if memory.complete:
        note(f"{memory.name} has {memory.length:,} tokens and is as its source is")
        return
    tell_incomplete(memory)
    raise click.exceptions.Exit(INTERRUPTED)
