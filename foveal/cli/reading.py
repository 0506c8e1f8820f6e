"""`foveal read`: a code base, a file or standard input, into a memory on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import Json, MemoryLimit, Model, StorePath, Threads, not_empty, open_engine, opened
from foveal.cli.output import (
    FAILED,
    INTERRUPTED,
    UserError,
    note,
    parse_count,
    print_json,
    results,
    show_bytes,
    show_seconds,
    table,
)
from foveal.cli.progress import Interruption, ReadingBar

if TYPE_CHECKING:
    from foveal.api import Engine
    from foveal.memory import Memory, MemoryInfo, Resumed, SourceOptions, Store
    from foveal.memory.reading import Reading, TailEvery
    from foveal.sources import Skipped


SAVE_EVERY = 60.0
"""Seconds of reading that a process which is killed may lose."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(read)


def read(
    paths: Annotated[
        list[str],
        typer.Argument(parser=not_empty, metavar="PATH", help="Folders, files, pipes, or - for standard input."),
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the memory.")],
    model: Model = None,
    store: StorePath = None,
    max_file_size: Annotated[
        str | None, typer.Option(help="Skip larger files (512k, 2M); default 1M inside a folder.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Read only what this glob matches (repeatable).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Skip what this glob matches (repeatable).")] = None,
    gitignore: Annotated[bool, typer.Option(help="Leave out what git ignores.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Start anew, in place of an older memory.")] = False,
    tail_every: Annotated[
        str, typer.Option(help="Tokens between places to go back to: a number, auto, full or none (docs/store.md).")
    ] = "auto",
    store_limit: Annotated[
        str | None, typer.Option(help="Bytes the store may take (20G); what is least valuable is evicted.")
    ] = None,
    durability: Annotated[
        str, typer.Option(help="What survives a power cut: full, normal or off (docs/store.md).")
    ] = "full",
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Read a source into memory NAME. Run it again to go on after Ctrl-C, or after files changed."""
    from foveal.memory.names import check_name
    from foveal.memory.reading import source_options
    from foveal.memory.store.contexts import claim
    from foveal.memory.store.gc import evict

    most = None if store_limit is None else parse_count(store_limit)
    tails: TailEvery = tail_every if tail_every in ("auto", "full", "none") else parse_count(tail_every)  # type: ignore[assignment]
    limit = None if max_file_size is None else parse_count(max_file_size)
    options = source_options(paths, limit, include or (), exclude or (), gitignore)
    into = opened(store, create=bool(check_name(name)), durability=durability)
    with claim(into, name):
        old = None if replace else _existing(name, into)
        if old is not None and old.problem is None and _paths(old) != options.named:
            raise UserError(
                f"memory {name} holds {old.facts['source']['source']}; choose another name, or give --replace"
            )
        if old is not None and old.problem is None and old.facts["origin"]:
            raise UserError(
                f"memory {name} was imported, and its pages are not computed here; choose another name, give --replace,"
                f" or bring it up to date: foveal sync {name} --source {paths[0]}"
            )
        engine = open_engine(model, threads, old, memory_limit=memory_limit, store=into)
        bar = ReadingBar()
        with Interruption(bar).watch() as interruption, bar:
            memory, resumed = _read(engine, old, name, options, bar, interruption, into, tails)
        with memory:
            if memory.length == 0:
                note("interrupted before anything was read")
                raise typer.Exit(INTERRUPTED)
            folder = memory.save(root=into)
            if most is not None and not evict(into, most).within:
                note(f"the store takes more than {store_limit}: what is left in it is pinned, in use, or tokens")
            _tell(memory, resumed, folder, json=json)


def _tell(memory: Memory, resumed: Resumed | None, folder: Path, *, json: bool) -> None:
    """What was read; exits when that was not all."""
    if json:
        print_json(report(memory, resumed, folder))
    else:
        _print(memory, resumed)
    if memory.problem:
        note(f"foveal: {memory.problem}")
    if not memory.complete:
        note(f"{memory.length:,} of {memory.totals.tokens:,} tokens are kept; run the same command again to go on")
        raise typer.Exit(FAILED if memory.problem else INTERRUPTED)


def _paths(old: MemoryInfo) -> tuple[str, ...]:
    """What the memory was read from."""
    from foveal.memory import SourceOptions

    return SourceOptions.from_dict(old.facts["source"]).named


def _existing(name: str, store: Store) -> MemoryInfo | None:
    from foveal.memory import MemoryNotFound, memory_info

    try:
        return memory_info(name, store)
    except MemoryNotFound:
        return None


def _read(
    engine: Engine,
    old: MemoryInfo | None,
    name: str,
    options: SourceOptions,
    bar: ReadingBar,
    stop: Interruption,
    store: Store,
    tail_every: TailEvery,
) -> tuple[Memory, Resumed | None]:
    """A new memory, or the old one gone on with (under today's filters)."""
    from foveal.memory import Memory

    if old is None:
        memory = Memory.read(
            engine,
            options.named,
            name=name,
            max_file_bytes=options.max_file_bytes,
            include=options.include,
            exclude=options.exclude,
            use_gitignore=options.use_gitignore,
            progress=bar,
            should_stop=stop,
            root=store,
            tail_every=tail_every,
            save_every=SAVE_EVERY,
        )
        return memory, None
    memory = Memory.load(engine, name, root=store)
    memory.options = options
    return memory, memory.resume(progress=bar, should_stop=stop, save_every=SAVE_EVERY)


# ---------------------------------------------------------------------- what came of it


def rivals(memory: Memory) -> list[dict[str, Any]]:
    """What other attentions' caches would need for as many tokens: name, bytes, and how many times as much it is."""
    from foveal.cache import make_plan

    mine = memory.sequence.layout.bytes_at(memory.length)
    made = make_plan(memory.engine.config, max(1, memory.length))
    return [
        {"name": rival.name, "bytes": rival.nbytes, "times": round(rival.nbytes / max(1, mine.entries), 2)}
        for rival in made.rivals
    ]


def report(memory: Memory, resumed: Resumed | None, folder: Path) -> dict[str, Any]:
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
        "resumed": None if resumed is None else {"kept": resumed.kept, "changed": list(resumed.changed)},
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


def _print(memory: Memory, resumed: Resumed | None) -> None:
    size, totals = memory.sequence.layout.bytes_at(memory.length), memory.totals
    out = results()
    summary = table("memory", memory.name)
    summary.add_row("source", memory.options.source)
    summary.add_row("files", f"{totals.files:,} ({show_bytes(totals.text_bytes)} of text)")
    summary.add_row("tokens", f"{memory.length:,}" + ("" if memory.complete else f" of {totals.tokens:,}"))
    summary.add_row("time", show_seconds(totals.seconds))
    if resumed is not None:
        summary.add_row("kept from before", f"{resumed.kept:,} tokens")
    if memory.reused:
        summary.add_row("found in the store", f"{memory.reused:,} tokens")
    if resumed is not None and resumed.changed:
        summary.add_row("changed since", ", ".join(resumed.changed[:5]) + (" ..." if len(resumed.changed) > 5 else ""))
    kinds = table("bytes by kind", "bytes>", "per token>")
    for kind, name in KINDS.items():
        count = size.to_dict()[kind]
        kinds.add_row(name, show_bytes(count), f"{count / memory.length:,.1f}")
    kinds.add_row("total", show_bytes(size.total), f"{size.total / memory.length:,.1f}")
    others = table("the same tokens in", "bytes>", "times our entries>")
    for rival in rivals(memory):
        others.add_row(rival["name"], show_bytes(rival["bytes"]), f"{rival['times']:,.1f}")
    for part in (summary, kinds, others):
        out.print(part)
        out.print()
    for line in (*memory.notes, *summarise_encodings(memory.encodings), *summarise_skipped(totals.skipped)):
        note(line)


def summarise_encodings(encodings: Sequence[Reading], most: int = 8) -> list[str]:
    """One line for each encoding beside UTF-8 that was found or guessed, and one for what could not be decoded."""
    lines = []
    for name, count in Counter(reading.encoding for reading in encodings if reading.encoding != "utf-8").most_common(
        most
    ):
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
