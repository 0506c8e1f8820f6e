"""`foveal ask`: a question put to a memory, answered in words with the lines they rest on."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.asked import citation_lines, place_lines, step_lines
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
from foveal.cli.output import note, print_json, tell, write

if TYPE_CHECKING:
    from foveal.memory import Answer, Memory
    from foveal.memory.asking.answering import AnswerStream


@click.command("ask")
@name_argument
@click.argument("question", help="What you want to know.")
@click.option(
    "--with", "with_", metavar="MODEL", help="Model that words the answer; default: the memory's own, else smollm2."
)
@click.option("--zoom", type=click.IntRange(min=1), default=3, metavar="N", help="Places that are read again.")
@flag("--no-zoom", "Show the model no place: it answers out of what it remembers.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=96, metavar="TOKENS", help="Tokens of the answer at most."
)
@click.option(
    "--place-tokens",
    type=click.IntRange(min=16),
    default=480,
    metavar="TOKENS",
    help="Tokens of all places together at most.",
)
@flag("--show-steps", "Show which places were found, by what, and what each step took.")
@model_option
@store_option
@memory_limit_option
@threads_option
@json_option
def command(
    name: str,
    question: str,
    with_: str | None,
    zoom: int,
    no_zoom: bool,
    max_tokens: int,
    place_tokens: int,
    show_steps: bool,
    model: str | None,
    folder: Path | None,
    memory_limit: str | None,
    threads: int | None,
    json: bool,
) -> None:
    """Answer QUESTION from memory NAME, with its lines.

    Attention and a search over the memory's text find places; a chat model reads them again and words the answer.
    A small model may word it wrongly: look at the lines.
    """
    from foveal.memory import Memory, memory_info
    from foveal.memory.asking.chat_model import opened_chat

    store = opened(folder)
    engine = open_engine(model, threads, memory_info(name, store), memory_limit=memory_limit, store=store)
    began = time.perf_counter()
    with ExitStack() as stack:
        chat = stack.enter_context(opened_chat(engine, with_, threads=threads))
        memory = stack.enter_context(Memory.load(engine, name, root=store))
        stack.enter_context(telling_of_imports(memory))
        settings: dict[str, Any] = {"max_tokens": max_tokens, "place_tokens": place_tokens}
        stream = memory.ask_stream(question, with_=chat, zoom=0 if no_zoom else zoom, **settings)
        if json:
            print_json(document(memory, chat.engine.name, stream.finish(), time.perf_counter() - began))
            return
        _tell(stream, show_steps)


def _tell(stream: AnswerStream, show_steps: bool) -> None:
    if show_steps:
        for line in place_lines(stream.places):
            note(line)
    for piece in stream:
        write(piece)
    write("\n")
    for line in citation_lines(stream.result):
        tell(line)
    if show_steps:
        for line in step_lines(stream.result):
            note(line)


def document(memory: Memory, model: str, answer: Answer, seconds: float) -> dict[str, Any]:
    """The JSON of `foveal ask` (docs/cli.md)."""
    from foveal.memory.asking.told import told

    return {"memory": memory.name, "with": model, **told(answer), "seconds": round(seconds, 3)}
