"""`foveal fork`, `log`, `pin`, `verify`, `export`, `import`, `gc`, `du`: work on a store. Only `verify
--recompute` opens a model."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from foveal.cli.options import Json, MemoryLimit, Model, StorePath, Threads, opened
from foveal.cli.output import (
    FAILED,
    INTERRUPTED,
    UserError,
    note,
    parse_count,
    print_json,
    results,
    show_bytes,
    table,
    tell,
)

if TYPE_CHECKING:
    from foveal.cli.recomputing import Outcome
    from foveal.memory.store.objects import Context
    from foveal.memory.store.verify import Problem, Report

Name = Annotated[str, typer.Argument(help="Name of the memory.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (fork, log, pin, verify, export, gc, du):
        app.command()(command)
    app.command("import")(import_)


def fork(
    name: Name,
    new: Annotated[str, typer.Argument(help="Name of the fork.")],
    at: Annotated[str | None, typer.Option(help="Tokens the fork begins with (128k); default: all.")] = None,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Make a second memory out of the first tokens of NAME. No page is copied; both go on on their own."""
    from foveal.memory.names import check_name
    from foveal.memory.store import contexts

    made = contexts.fork(opened(store), name, check_name(new), at=None if at is None else parse_count(at))
    if json:
        print_json({"name": made.name, "parent": made.parent, "forked_at": made.forked_at, "tokens": made.length})
    else:
        note(f"{made.name} has the first {made.length:,} tokens of {made.parent}")


def log(name: Name, store: StorePath = None, json: Json = False) -> None:
    """Show where NAME was forked from and what was forked from it, as a tree."""
    tree = _tree(opened(store), name)
    if json:
        print_json(tree)
        return
    shown = table("memory", "tokens>", "forked at>", "saved")
    for depth, node in _walk(tree):
        at = f"{node['forked_at']:,}" if node["forked_at"] is not None else "-"
        tokens = f"{node['tokens']:,}" if node["tokens"] is not None else "deleted"
        shown.add_row("  " * depth + node["name"], tokens, at, (node["saved"] or "-")[:16].replace("T", " "))
    results().print(shown)


def pin(
    name: Name,
    off: Annotated[bool, typer.Option("--off", help="Let it be evicted again.")] = False,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Never evict NAME under a limit."""
    from foveal.memory.store import contexts

    made = contexts.change(opened(store), name, pinned=not off)
    if json:
        print_json({"name": made.name, "pinned": made.pinned})


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Memories to check; default: the whole store.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Run the network over the memories too, and compare what comes out.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, help="With --recompute: only so many pages, chosen at random.")
    ] = None,
    model: Model = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Read everything and compare all checksums and references. Exits with 1 and a list when anything is wrong.

    With --recompute every page is also compared with what the network computes of its tokens; an imported memory of
    which all is equal counts as computed here from then on.
    """
    from foveal.cli.recomputing import recompute_all
    from foveal.memory.store.verify import verify as check

    if sample is not None and not recompute:
        raise typer.BadParameter("--sample says how much --recompute computes; give that too")
    place = opened(store)
    report = check(place, names or None, repair=repair)
    again = None
    if recompute:
        again = recompute_all(
            place,
            names or None,
            model=model,
            threads=threads,
            memory_limit=memory_limit,
            sample=sample,
            repair=repair,
        )
    _tell_verified(report, again, repair=repair, json=json)
    if again is not None and not again.complete:
        raise typer.Exit(INTERRUPTED)
    found = [*report.problems, *(again.problems if again is not None else [])]
    if found:
        raise UserError(_counted(found, repair))
    if again is not None and not again.sound:
        raise typer.Exit(FAILED)


def _tell_verified(report: Report, again: Outcome | None, *, repair: bool, json: bool) -> None:
    from foveal.cli.recomputing import tell_outcome

    found = [*report.problems, *(again.problems if again is not None else [])]
    problems = [
        {
            "what": problem.what,
            "where": problem.where,
            "memories": list(problem.contexts),
            "lost": problem.lost,
            "mended": problem.mended,
        }
        for problem in found
    ]
    if json:
        counts = {"memories": report.contexts, "objects": report.objects, "bytes": report.nbytes}
        kept = {"given_up_bytes": sum(report.lost.values()), "repaired": repair and bool(found)}
        told = {"sound": not found, **counts, **kept, "problems": problems}
        print_json(told if again is None else {**told, "recomputed": again.document()})
        return
    for problem in found:
        tell(str(problem))
    what = f"{report.objects:,} objects ({show_bytes(report.nbytes)}) of {report.contexts:,} memories"
    note(f"{what}: all as they were written" if report.sound else f"{what} were read")
    _tell_lost(sum(report.lost.values()))
    if again is not None:
        tell_outcome(again)


def export(
    name: Name,
    file: Annotated[str, typer.Argument(help="File to write, or - for standard output.")],
    store: StorePath = None,
) -> None:
    """Write NAME to one file, checksummed. It is not encrypted, even if the store is."""
    from foveal.memory.store import transfer

    with _writing(file) as out:
        size = transfer.export(opened(store), name, out)
    note(f"{name}: {show_bytes(size)}")


def import_(
    file: Annotated[str, typer.Argument(help="File that `foveal export` wrote, or - for standard input.")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name to give it; default: its own.")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Take its pages for computed here: you made the file yourself.")
    ] = False,
    source: Annotated[
        list[str] | None, typer.Option(help="Where its source lies on this machine; for each path it was read from.")
    ] = None,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Enter an exported memory. A file of which anything is off is refused whole.

    What it brings serves this memory and its forks alone, until `foveal verify --recompute` has computed it again.
    """
    from foveal.memory.names import check_name
    from foveal.memory.store import transfer

    if name is not None:
        check_name(name)
    for path in source or ():
        if not Path(path).exists():
            raise UserError(f"{path} does not exist; say where the source lies, or leave --source out")
    if file == "-" and sys.stdin.isatty():
        raise UserError("an exported memory is no text; name a file, or send one to standard input")
    with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as stream:
        into = opened(store, create=True)
        made = transfer.import_file(into, stream, name, trust=trust, source=source)
    if json:
        print_json({"name": made.name, "tokens": made.length, "origin": made.origin or None})
    else:
        serves = f"; its pages serve it alone until `foveal verify --recompute {made.name}`" if made.origin else ""
        note(f"{made.name}: {made.length:,} tokens{serves}")


def gc(
    limit: Annotated[
        str | None, typer.Option(help="Evict what is least valuable until so many bytes are left.")
    ] = None,
    empty_lost: Annotated[
        bool, typer.Option("--empty-lost", help="Delete for good what was damaged and kept in the folder lost.")
    ] = False,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Give back the space of what was deleted. With --limit, evict as well; tokens stay, and evicted memories work."""
    from foveal.memory.store import gc as space

    into = opened(store)
    before = space.disk_bytes(into)
    evicted = space.Evicted(0, 0, True) if limit is None else space.evict(into, parse_count(limit))
    kept = space.collect(into, threshold=0.0).kept
    after = space.disk_bytes(into)
    emptied = space.empty_lost(into) if empty_lost else 0
    lost = sum(space.lost_bytes(into).values())
    if json:
        told = {"bytes": after, "freed": before - after, "evicted_pages": evicted.pages, "evicted_tails": evicted.tails}
        given_up = {"given_up_bytes": lost, "given_up_freed": emptied}
        print_json({**told, **given_up, "within_limit": evicted.within, "kept": list(kept)})
    else:
        note(f"{show_bytes(before - after + emptied)} given back, {show_bytes(after)} in use")
        _tell_lost(lost)
    if kept:
        note(f"foveal: not all space could be given back: {'; '.join(kept)}")
    if not evicted.within:
        note(f"foveal: the limit of {limit} is not kept: what is left is pinned, in use, or tokens")
    if kept or not evicted.within:
        raise typer.Exit(FAILED)


def du(store: StorePath = None, json: Json = False) -> None:
    """Show the bytes of each memory: its own, and those it shares with others."""
    from foveal.memory.store.gc import disk_bytes, lost_bytes, usage

    into = opened(store)
    used, total, lost = usage(into), disk_bytes(into), sum(lost_bytes(into).values())
    if json:
        listed = [{"name": name, "own": use.own, "shared": use.shared} for name, use in sorted(used.items())]
        print_json({"store": str(into.folder), "bytes": total, "given_up_bytes": lost, "memories": listed})
        return
    shown = table("memory", "own>", "shared>")
    for name, use in sorted(used.items(), key=lambda item: -item[1].own):
        shown.add_row(name, show_bytes(use.own), show_bytes(use.shared))
    results().print(shown)
    note(f"{show_bytes(total)} in {into.folder}")
    _tell_lost(lost)


# ---------------------------------------------------------------------- inside


def _tell_lost(nbytes: int) -> None:
    """What the store has given up, and keeps for a person to look at."""
    if nbytes:
        note(f"{show_bytes(nbytes)} of damaged files lie in the folder lost; `foveal gc --empty-lost` deletes them")


def _counted(problems: Sequence[Problem], repaired: bool) -> str:
    """``3 problems, 1 of them lost; ...``."""
    lost = sum(problem.lost for problem in problems)
    told = f"{len(problems):,} problem{'s' * (len(problems) > 1)}" + (f", {lost:,} of them lost" if lost else "")
    return f"{told}; what can be mended was" if repaired else f"{told}; `foveal verify --repair` mends what can be"


def _tree(store: Any, name: str) -> dict[str, Any]:
    """The tree of forks that `name` stands in, from the oldest ancestor that is known."""
    from foveal.memory import StoreError

    known: dict[str, Context] = {c.name: c for c in store.contexts() if not isinstance(c, StoreError)}
    children = defaultdict(list)
    for context in known.values():
        children[context.parent].append(context.name)
    store.context(name)
    top, seen = name, {name}
    while top in known and known[top].parent and known[top].parent not in seen:
        top = known[top].parent
        seen.add(top)
    return _branch(top, known, children, set())


def _branch(name: str, known: dict[str, Context], children: dict[str, list[str]], above: set[str]) -> dict[str, Any]:
    context = known.get(name)
    forks = [child for child in sorted(children.get(name, [])) if child not in above | {name}]
    return {
        "name": name,
        "tokens": context.length if context is not None else None,
        "forked_at": context.forked_at if context is not None and context.parent else None,
        "saved": context.saved if context is not None else None,
        "forks": [_branch(child, known, children, above | {name}) for child in forks],
    }


def _walk(tree: dict[str, Any], depth: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    yield depth, tree
    for branch in tree["forks"]:
        yield from _walk(branch, depth + 1)


@contextmanager
def _writing(file: str) -> Iterator[BinaryIO]:
    """Standard output, a pipe or a device, or a new private file that is there only when it is whole."""
    if file == "-":
        if sys.stdout.isatty():
            raise UserError("an exported memory is no text; name a file, or send standard output to one")
        yield sys.stdout.buffer
        return
    target = Path(os.path.realpath(file))
    if target.is_dir():
        raise UserError(f"{file or repr(file)} is a folder; name a file in it")
    if target.exists() and not target.is_file():
        with target.open("wb") as out:
            yield out
        return
    descriptor, temporary = tempfile.mkstemp(prefix=".foveal-export-", dir=target.parent)  # of mode 0600
    try:
        with open(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
