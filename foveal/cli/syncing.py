"""`foveal sync`: bring a memory up to date with its source, after telling what each way costs."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import Json, Model, StorePath, Threads, not_empty, open_engine, opened, telling_of_imports
from foveal.cli.output import (
    INTERRUPTED,
    UserError,
    note,
    notes,
    parse_count,
    print_json,
    show_bytes,
    show_seconds,
    table,
)
from foveal.cli.progress import Interruption, ReadingBar
from foveal.cli.reading import SAVE_EVERY

if TYPE_CHECKING:
    from foveal.memory import Memory, SyncPlan
    from foveal.memory.syncing import Mode

MOST_SHOWN = 10
"""Paths of each kind that are listed."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(sync)


def sync(
    name: Annotated[str, typer.Argument(help="Name of the memory.")],
    append: Annotated[
        bool, typer.Option("--append", help="Read new versions behind all else, with a note that they replace.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read the source anew from the first change on; drops earlier versions.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what changed and what it costs.")] = False,
    source: Annotated[
        list[str] | None,
        typer.Option(
            parser=not_empty,
            metavar="PATH",
            help="Where the source lies now, if it was moved; once for each of its paths. It is remembered.",
        ),
    ] = None,
    model: Model = None,
    store: StorePath = None,
    store_limit: Annotated[
        str | None, typer.Option(help="Bytes the store may take (20G); what is least valuable is evicted.")
    ] = None,
    durability: Annotated[
        str, typer.Option(help="What survives a power cut: full, normal or off (docs/store.md).")
    ] = "full",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Bring memory NAME up to date with its files. Tells first what --append and --rebuild cost.

    With neither, a terminal is asked; else it appends, unless rebuilding reads at most twice as much or more than a
    quarter of the memory would be of earlier versions.
    """
    from foveal.memory import Memory, memory_info
    from foveal.memory.store.contexts import claim
    from foveal.memory.store.gc import evict

    if append and rebuild:
        raise typer.BadParameter("give --append or --rebuild, not both")
    most = None if store_limit is None else parse_count(store_limit)
    into = opened(store, durability=durability)
    info = memory_info(name, into)
    engine = open_engine(model, threads, info)
    bar = ReadingBar()
    alone = nullcontext() if dry_run else claim(into, name)
    with alone, Interruption(bar).watch() as interruption, Memory.load(engine, name, root=into) as memory:
        moved = bool(source) and _move(memory, source or [])
        with bar, telling_of_imports(memory):
            plan = _plan(memory, bar)
        if not json:
            _tell(memory, plan)
        given: Mode | None = "append" if append else "rebuild" if rebuild else None
        mode = None if dry_run else _choose(plan, given, ask=not json)
        done = mode is not None and plan.is_needed(mode)
        if done:
            with bar, telling_of_imports(memory):
                memory.sync(mode, plan=plan, progress=bar, should_stop=interruption, save_every=SAVE_EVERY)
        if not dry_run and (done or moved):
            memory.save(root=into)
            if most is not None and not evict(into, most).within:
                note(f"the store takes more than {store_limit}: what is left in it is pinned, in use, or tokens")
        if json:
            print_json(report(memory, plan, mode if done else None))
        _conclude(memory, done)


def _move(memory: Memory, source: list[str]) -> bool:
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


def _plan(memory: Memory, bar: ReadingBar) -> SyncPlan:
    from foveal.sources import SourceError

    try:
        return memory.plan_sync(progress=bar)
    except SourceError as error:
        raise UserError(f"{error}; if the source of {memory.name} was moved, give --source PATH") from error


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
            answer = typer.prompt("append, rebuild, or none?", default=recommended, err=True).strip().lower()
        except (typer.Abort, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
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
    shown = table("", "tokens to read>", "time>", "added to the store>", "tokens afterwards>", "of earlier versions>")
    for mode, cost in plan.costs.items():
        time = "-" if cost.seconds is None else show_seconds(cost.seconds)
        counts = (f"{cost.tokens:,}", f"{cost.outdated:,}")
        shown.add_row(f"--{mode}", f"{cost.read:,}", time, show_bytes(cost.store_bytes), *counts)
    notes().print(shown)


def _removed(path: str, reason: str) -> str:
    return path if reason == "deleted" else f"{path} ({reason})"


def _conclude(memory: Memory, done: bool) -> None:
    if not done:
        return
    if memory.complete:
        note(f"{memory.name} has {memory.length:,} tokens and is as its source is")
        return
    note(f"{memory.length:,} of {memory.totals.tokens:,} tokens are kept; run the same command again to go on")
    raise typer.Exit(INTERRUPTED)
