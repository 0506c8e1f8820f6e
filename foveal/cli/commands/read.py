"""`foveal read`: a code base, a file or standard input, into a memory on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.memories import tell_incomplete
from foveal.cli.opening import keep_within, open_engine, opened
from foveal.cli.options import (
    PATH_TEXT,
    durability_option,
    flag,
    json_option,
    memory_limit_option,
    model_option,
    store_limit_option,
    store_option,
    threads_option,
)
from foveal.cli.output import (
    FAILED,
    INTERRUPTED,
    note,
    parse_count,
    parse_limit,
    print_json,
    show_bytes,
    show_seconds,
)
from foveal.cli.progress import Interruption, ReadingBar

if TYPE_CHECKING:
    from rich.table import Table

    from foveal.memory import Memory, MemoryStore
    from foveal.memory.gathering import Reading
    from foveal.memory.options import TailEvery
    from foveal.sources import Skipped


@click.command("read")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=PATH_TEXT,
    metavar="PATH...",
    help="Folders, files, pipes, or - for standard input.",
)
@click.option("--name", "-n", required=True, metavar="NAME", help="Name of the memory.")
@model_option
@store_option
@click.option("--max-file-size", metavar="BYTES", help="Skip larger files (512k, 2M); default 1M inside a folder.")
@click.option("--include", multiple=True, metavar="GLOB", help="Read only what this glob matches (repeatable).")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Skip what this glob matches (repeatable).")
@click.option("--gitignore/--no-gitignore", default=True, help="Leave out what git ignores.")
@flag("--replace", "Start anew, in place of an older memory.")
@click.option(
    "--tail-every",
    default="auto",
    metavar="TOKENS",
    help="Tokens between places to go back to: a number, auto, full or none (docs/store.md).",
)
@store_limit_option
@durability_option
@memory_limit_option
@threads_option
@json_option
def command(
    paths: tuple[str, ...],
    name: str,
    model: str | None,
    folder: Path | None,
    max_file_size: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    gitignore: bool,
    replace: bool,
    tail_every: str,
    store_limit: str | None,
    durability: str,
    memory_limit: str | None,
    threads: int | None,
    json: bool,
) -> None:
    """Read a source into memory NAME. Run it again to go on after Ctrl-C, or after files changed."""
    from foveal.memory.names import check_name
    from foveal.memory.options import source_options

    parse_limit(store_limit)  # wrong usage, before anything is read
    tails = _tails(tail_every)
    options = source_options(paths, parse_limit(max_file_size), include, exclude, gitignore)
    store = opened(folder, create=bool(check_name(name)), durability=durability)
    old = None if replace else store.going_on(name, options)
    engine = open_engine(model, threads, old, memory_limit=memory_limit, store=store)
    bar = ReadingBar()
    with Interruption(bar).watch() as stop, bar:
        memory = store.read(
            engine, options, name=name, replace=replace, progress=bar, should_stop=stop, tail_every=tails
        )
    with memory:
        keep_within(store, store_limit)
        _conclude(memory, store, json=json)


def _tails(text: str) -> TailEvery:
    """What ``--tail-every`` says."""
    if text in ("auto", "full", "none"):
        return text  # type: ignore[return-value]
    try:
        return parse_count(text)
    except click.BadParameter as error:
        raise click.BadParameter(f"{error.message}, or auto, full or none", param_hint="--tail-every") from error


def _conclude(memory: Memory, store: MemoryStore, *, json: bool) -> None:
    """Tell what was read and saved; exits when that was not all."""
    if memory.length == 0:
        note("interrupted before anything was read")
        raise click.exceptions.Exit(INTERRUPTED)
    if json:
        print_json(report(memory, store.folder))
    else:
        _print(memory)
    if memory.problem:
        note(f"foveal: {memory.problem}")
    if not memory.complete:
        tell_incomplete(memory)
        raise click.exceptions.Exit(FAILED if memory.problem else INTERRUPTED)


# ---------------------------------------------------------------------- what came of it


def rivals(memory: Memory) -> list[dict[str, Any]]:
    """What other attentions' caches would need for as many tokens: name, bytes, and how many times as much it is."""
    from foveal.plan import make_plan

    mine = memory.sequence.layout.bytes_at(memory.length)
    made = make_plan(memory.engine.config, max(1, memory.length))
    return [
        {"name": rival.name, "bytes": rival.nbytes, "times": round(rival.nbytes / max(1, mine.entries), 2)}
        for rival in made.rivals
    ]


def report(memory: Memory, folder: Path) -> dict[str, Any]:
    """The JSON of `foveal read` (docs/cli.md)."""
    size = memory.sequence.layout.bytes_at(memory.length)
    return {
        "name": memory.name,
        "path": str(folder),
        "source": memory.options.source,
        "sources": list(memory.options.named),
        "complete": memory.complete,
        "tokens": memory.length,
        "source_tokens": memory.totals.tokens,
        "files": memory.totals.files,
        "text_bytes": memory.totals.text_bytes,
        "seconds": round(memory.totals.seconds, 3),
        "reused_tokens": memory.reused,
        "bytes": size.to_dict() | {"total": size.total},
        "entry_bytes_per_token": round(size.entries / memory.length, 2),
        "rivals": rivals(memory),
        "skipped": [{"path": skip.path, "reason": skip.reason} for skip in memory.totals.skipped],
        "encodings": [asdict(reading) for reading in memory.encodings],
        "notes": list(memory.notes),
        "resumed": None
        if memory.resumed is None
        else {"kept": memory.resumed.kept, "changed": list(memory.resumed.changed)},
    }


KINDS = {
    "csa_entries": "CSA entries (4 tokens each)",
    "index_keys": "index keys",
    "hca_entries": "HCA entries (128 tokens each)",
    "window": "raw window",
    "open_windows": "open windows",
    "tokens": "token ids",
}
"""Kinds of bytes, as a person is told them."""


def _print(memory: Memory) -> None:
    from foveal.cli.render import print_blocks, table

    others = table("the same tokens in", "bytes>", "times our entries>")
    for rival in rivals(memory):
        others.add_row(rival["name"], show_bytes(rival["bytes"]), f"{rival['times']:,.1f}")
    print_blocks(table("memory", memory.name, rows=_summary(memory)), _kinds(memory), others)
    for line in (
        *memory.notes,
        *summarise_encodings(memory.encodings),
        *summarise_skipped(memory.totals.skipped),
    ):
        note(line)


def _summary(memory: Memory) -> list[tuple[str, str]]:
    totals, resumed = memory.totals, memory.resumed
    rows = [
        ("source", memory.options.source),
        ("files", f"{totals.files:,} ({show_bytes(totals.text_bytes)} of text)"),
        ("tokens", f"{memory.length:,}" + ("" if memory.complete else f" of {totals.tokens:,}")),
        ("time", show_seconds(totals.seconds)),
    ]
    if resumed is not None:
        rows.append(("kept from before", f"{resumed.kept:,} tokens"))
    if memory.reused:
        rows.append(("found in the store", f"{memory.reused:,} tokens"))
    if resumed is not None and resumed.changed:
        rows.append(("changed since", ", ".join(resumed.changed[:5]) + (" ..." if len(resumed.changed) > 5 else "")))
    return rows


def _kinds(memory: Memory) -> Table:
    from foveal.cli.render import table

    size = memory.sequence.layout.bytes_at(memory.length)
    kinds = table("bytes by kind", "bytes>", "per token>")
    for kind, name in KINDS.items():
        count = size.to_dict()[kind]
        kinds.add_row(name, show_bytes(count), f"{count / memory.length:,.1f}")
    kinds.add_row("total", show_bytes(size.total), f"{size.total / memory.length:,.1f}")
    return kinds


def summarise_encodings(encodings: Sequence[Reading], most: int = 8) -> list[str]:
    """One line for each encoding beside UTF-8 that was found or guessed, and one for what could not be decoded."""
    lines = []
    others = Counter(reading.encoding for reading in encodings if reading.encoding != "utf-8")
    for name, count in others.most_common(most):
        paths = [reading.path for reading in encodings if reading.encoding == name]
        lines.append(f"read {count:,} as {name} ({_few(paths)})")
    damaged = [reading for reading in encodings if reading.replaced]
    if damaged:
        total = sum(reading.replaced for reading in damaged)
        lines.append(f"{total:,} replacement characters stand for damaged bytes ({_few([r.path for r in damaged])})")
    return lines


def _few(paths: Sequence[str]) -> str:
    """Up to three of them."""
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")


def summarise_skipped(skipped: Sequence[Skipped], most: int = 8) -> list[str]:
    """One line for each reason, the commonest first: how many, and up to three of them."""
    reasons = Counter(skip.reason for skip in skipped)
    lines = []
    for reason, count in reasons.most_common(most):
        paths = [skip.path for skip in skipped if skip.reason == reason]
        lines.append(f"skipped {count:,}: {reason} ({_few(paths)})")
    rest = sum(reasons.values()) - sum(count for _, count in reasons.most_common(most))
    return [*lines, *([f"skipped {rest:,} for other reasons; --json lists all"] if rest else [])]
