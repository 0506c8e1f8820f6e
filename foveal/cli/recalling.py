"""`foveal recall`: continue from a cue out of memory, and say where it came from."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.options import Json, Model, Store, Threads, open_engine
from foveal.cli.output import print_json, results, table

if TYPE_CHECKING:
    from foveal.memory import Memory, Recall, RecallStream


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
    model: Model = None,
    store: Store = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Continue CUE out of memory NAME, then list the lines of the source that the text came from."""
    from foveal.engine import SamplingParams
    from foveal.memory import Memory, memory_info, store_root

    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        max_tokens=max_tokens,
    )
    engine = open_engine(model, threads, memory_info(name, store))
    with Memory.load(engine, name, root=store_root(store)) as memory:
        started = time.perf_counter()
        stream = memory.recall_stream(cue, params, max_tokens=max_tokens)
        if json:
            print_json(document(memory, stream.finish(), time.perf_counter() - started))
        else:
            _show(cue, stream)


def _show(cue: str, stream: RecallStream) -> None:
    """The cue and, as it comes, what follows it; then the citations."""
    _write(cue)
    for piece in stream:
        _write(piece)
    _write("\n\n")
    result = stream.result
    if not result.citations:
        _write("no part of the source stood out\n")
        return
    cited = table("from", "share>")
    for citation in result.citations:
        lines = f"{citation.first_line}-{citation.last_line}"
        cited.add_row(f"{citation.path}:{lines}", f"{citation.share:.0%}")
    results().print(cited)


def _write(text: str) -> None:
    """Write to stdout at once. Recalled text may hold anything a file can: what stdout's encoding lacks becomes an
    escape, and on a terminal control characters do too, so that a file cannot steer the terminal of who recalls it."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
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
        "finish_reason": str(result.finish_reason),
        "seconds": round(seconds, 3),
        "citations": [
            {
                "path": citation.path,
                "first_line": citation.first_line,
                "last_line": citation.last_line,
                "share": round(citation.share, 4),
            }
            for citation in result.citations
        ],
    }
