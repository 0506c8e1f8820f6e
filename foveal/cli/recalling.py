"""`foveal recall`: continue from a cue out of memory, and say where it came from."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import Json, MemoryLimit, Model, StorePath, Threads, open_engine, opened, telling_of_imports
from foveal.cli.output import print_json, printable, results, table

if TYPE_CHECKING:
    from foveal.memory import Citation, Memory, Recall, RecallStream, SourceOptions

LINES_SHOWN = 12
"""Lines of one citation that ``--lines`` shows."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(recall)


def recall(
    name: Annotated[str, typer.Argument(help="Name of the memory.")],
    cue: Annotated[str, typer.Argument(help="Text from the source; recall goes on where it ends.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to recall at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Choose among the likeliest tokens of this total probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Choose among this many likeliest tokens; 0 for all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the recall; may be repeated.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Show the cited lines as the files hold them now.")] = False,
    model: Model = None,
    store: StorePath = None,
    memory_limit: MemoryLimit = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Continue CUE out of memory NAME, then list the lines of the source that the text came from."""
    from foveal.engine import SamplingParams
    from foveal.memory import Memory, memory_info

    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        max_tokens=max_tokens,
    )
    place = opened(store)
    engine = open_engine(model, threads, memory_info(name, place), memory_limit=memory_limit, store=place)
    with Memory.load(engine, name, root=place) as memory, telling_of_imports(memory):
        started = time.perf_counter()
        stream = memory.recall_stream(cue, params, max_tokens=max_tokens)
        if json:
            print_json(document(memory, stream.finish(), time.perf_counter() - started))
        else:
            _stream(cue, stream)
            _cite(stream.result, memory.options if lines else None)


def _stream(cue: str, stream: RecallStream) -> None:
    """The cue and, as it comes, what follows it."""
    _write(cue)
    for piece in stream:
        _write(piece)
    _write("\n\n")


def _cite(result: Recall, source: SourceOptions | None) -> None:
    """The citations, largest share first; with a `source`, the lines of its files too."""
    if not result.citations:
        _write("no part of the source stood out\n")
        return
    cited = table("from", "share>")
    for citation in result.citations:
        lines = f"{citation.first_line}-{citation.last_line}"
        earlier = " (earlier version)" if citation.outdated else ""
        cited.add_row(f"{citation.path}:{lines}{earlier}", f"{citation.share:.0%}")
    results().print(cited)
    if result.cue_matched < result.cue_tokens:
        part = f" word for word: its last {result.cue_matched} of {result.cue_tokens} tokens do"
        _write(f"\nthe cue does not stand there{part if result.cue_matched else ''}\n")
    if source is not None:
        for citation in result.citations:
            _write(f"\n{printable(citation.path)}\n" + "".join(_quote(source, citation)))


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


def _write(text: str) -> None:
    """Write to stdout at once. Recalled text may hold anything a file can. A pipe gets it as it is, but for what
    stdout's encoding lacks; a terminal gets it as `printable`, so that a file cannot steer it."""
    if sys.stdout.isatty():
        text = printable(text, "\n\t")
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


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
