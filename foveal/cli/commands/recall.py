"""`foveal recall`: continue from a cue out of memory, and say where it came from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.opening import open_engine, opened, telling_of_imports
from foveal.cli.options import (
    flag,
    json_option,
    memory_limit_option,
    model_option,
    name_argument,
    store_option,
    threads_option,
)
from foveal.cli.output import print_json, printable, write

if TYPE_CHECKING:
    from foveal.memory import Citation, Memory, Recall, RecallStream, SourceOptions

LINES_SHOWN = 12
"""Lines of one citation that ``--lines`` shows."""


@click.command("recall")
@name_argument
@click.argument("cue", help="Text from the source; recall goes on where it ends.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=64, metavar="TOKENS", help="Tokens to recall at most."
)
@click.option("--temperature", default=0.0, metavar="NUMBER", help="0 takes the likeliest token each time.")
@click.option(
    "--top-p", default=1.0, metavar="NUMBER", help="Choose among the likeliest tokens of this total probability."
)
@click.option("--top-k", default=0, metavar="N", help="Choose among this many likeliest tokens; 0 for all.")
@click.option(
    "--min-p", default=0.0, metavar="NUMBER", help="Drop tokens less likely than this share of the likeliest."
)
@click.option("--seed", type=int, metavar="N", help="Makes sampling reproducible.")
@click.option("--stop", multiple=True, help="Text that ends the recall; may be repeated.")
@flag("--lines", "Show the cited lines as the files hold them now.")
@model_option
@store_option
@memory_limit_option
@threads_option
@json_option
def command(
    name: str,
    cue: str,
    lines: bool,
    model: str | None,
    folder: Path | None,
    memory_limit: str | None,
    threads: int | None,
    json: bool,
    **sampling: Any,
) -> None:
    """Continue CUE out of memory NAME, and cite the lines. They are those that the text came from."""
    from foveal.batch import SamplingParams
    from foveal.memory import Memory, memory_info

    params = SamplingParams(**sampling)
    store = opened(folder)
    engine = open_engine(model, threads, memory_info(name, store), memory_limit=memory_limit, store=store)
    with Memory.load(engine, name, root=store) as memory, telling_of_imports(memory):
        started = time.perf_counter()
        stream = memory.recall_stream(cue, params, max_tokens=params.max_tokens)
        if json:
            print_json(document(memory, stream.finish(), time.perf_counter() - started))
        else:
            _stream(cue, stream)
            _cite(stream.result, memory.options if lines else None)


def _stream(cue: str, stream: RecallStream) -> None:
    """The cue and, as it comes, what follows it: nothing when what is asked for is impossible."""
    pieces = iter(stream)
    write(cue + next(pieces, ""))
    for piece in pieces:
        write(piece)
    write("\n\n")


def _cite(result: Recall, source: SourceOptions | None) -> None:
    """The citations, largest share first; with a `source`, the lines of its files too."""
    if not result.citations:
        write("no part of the source stood out\n")
        return
    from foveal.cli.render import results, table

    cited = table("from", "share>")
    for citation in result.citations:
        lines = f"{citation.first_line}-{citation.last_line}"
        earlier = " (earlier version)" if citation.outdated else ""
        cited.add_row(f"{citation.path}:{lines}{earlier}", f"{citation.share:.0%}")
    results().print(cited)
    if result.cue_matched < result.cue_tokens:
        part = f" word for word: its last {result.cue_matched} of {result.cue_tokens} tokens do"
        write(f"\nthe cue does not stand there{part if result.cue_matched else ''}\n")
    if source is not None:
        for citation in result.citations:
            write(f"\n{printable(citation.path)}\n" + "".join(_quote(source, citation)))


def _quote(source: SourceOptions, citation: Citation) -> Iterator[str]:
    """The cited lines with their numbers, as the file holds them now, at most `LINES_SHOWN`."""
    from foveal.memory import ReadError
    from foveal.memory.cited import lines_of

    if citation.outdated:
        yield "  (these lines are of an earlier version of the file and no longer in it)\n"
        return
    try:
        lines = lines_of(source, citation.path)
    except ReadError as error:
        yield f"  (cannot be shown: {error})\n"
        return
    cited = [line for line in lines if citation.first_line <= line[0] <= citation.last_line]
    for number, text in cited[:LINES_SHOWN]:
        yield f"{number:6}  {text}\n"
    if len(cited) > LINES_SHOWN:
        yield f"        ... to line {citation.last_line}\n"


def document(memory: Memory, result: Recall, seconds: float) -> dict[str, Any]:
    """The JSON of `foveal recall` (docs/cli.md)."""
    return {
        "memory": memory.name,
        "cue": result.cue,
        "text": result.text,
        "tokens": len(result.tokens) - result.healed,
        "cue_tokens": result.cue_tokens,
        "cue_matched": result.cue_matched,
        "prompt_tokens": result.prompt_tokens,
        "reused_tokens": result.reused_tokens,
        "finish_reason": str(result.finish_reason),
        "seconds": round(seconds, 3),
        "citations": [
            {
                "path": citation.path,
                "first_line": citation.first_line,
                "last_line": citation.last_line,
                "share": round(citation.share, 4),
                "outdated": citation.outdated,
            }
            for citation in result.citations
        ],
    }
