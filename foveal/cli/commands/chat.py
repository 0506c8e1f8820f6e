"""`foveal chat`: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import datetime
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.completing import memory_names
from foveal.cli.options import flag, memory_limit_option, store_option, threads_option
from foveal.cli.output import UserError, note, printable

if TYPE_CHECKING:
    from foveal.cli.chatting.asked import Zoom
    from foveal.cli.chatting.talk import Talk
    from foveal.memory import MemoryInfo, MemoryStore
    from foveal.text.chat import ChatEncoding

KEY = "FOVEAL_API_KEY"


@click.command("chat")
@click.argument("name", required=False, shell_complete=memory_names, help="The conversation; goes on if there is one.")
@click.option(
    "--memory", shell_complete=memory_names, metavar="NAME", help="Talk about this memory; answers cite its lines."
)
@click.option(
    "--zoom",
    type=click.IntRange(1, 32),
    metavar="N",
    help="Places of the memory that are read again for each message; default: 3 with a memory, else none.",
)
@flag("--no-zoom", "Read no places again but for /ask: the model answers out of what it remembers.")
@click.option(
    "--with",
    "with_",
    metavar="MODEL",
    help="Model that words answers from places; default: that of the memory, else smollm2.",
)
@click.option("--model", metavar="MODEL", help="nano, smollm2, or a model directory; of a server: what it calls it.")
@click.option("--server", metavar="URL", help="Talk to a server instead; $FOVEAL_API_KEY is the key.")
@click.option("--system", default="", metavar="TEXT", help="Instructions before the first turn.")
@click.option(
    "--thinking", type=click.Choice(["off", "low", "high", "max"]), default="off", help="How much it reasons."
)
@click.option("--temperature", default=0.7, metavar="NUMBER", help="0 takes the likeliest token each time.")
@click.option(
    "--top-p", default=0.95, metavar="NUMBER", help="Choose among the likeliest tokens of this total probability."
)
@click.option("--seed", type=int, metavar="N", help="Makes sampling reproducible.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Tokens of an answer at most; default: 1024, and 96 of one that is worded from places.",
)
@flag("--no-save", "Do not save the conversation.")
@flag("--json", "Print each answer as one line of JSON.")
@store_option
@memory_limit_option
@threads_option
def command(name: str | None, server: str | None, no_save: bool, json: bool, **options: Any) -> int:
    """Chat with a model, about a memory if you like.

    About a memory, each message is asked of it: places that fit are found and read again, and the answer comes with
    their lines.

    Each turn is saved when it ends: `foveal chat NAME` goes on where NAME ended. Without a terminal every line of stdin
    is a message, and the answers go to stdout. /help tells of the commands.
    """
    from foveal.cli.chatting.loop import Loop

    if options["zoom"] is not None and options["no_zoom"]:
        raise click.UsageError("--zoom and --no-zoom say the opposite of each other; give one of them")
    # Two chats may begin in the same second.
    chosen = name if name is not None else f"chat-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    talk = _here(chosen, options) if server is None else _remote(chosen, server, options)
    try:
        _greet(talk)
        code = Loop(talk, saves=not no_save, as_json=json).run()
        if name is None and not no_save and talk.turns:
            note(f"saved as {talk.name}; foveal chat {talk.name}{'' if server is None else f' --server {server}'}")
        return code
    finally:
        talk.close()


def _greet(talk: Talk) -> None:
    turns = talk.turns
    if turns:
        asked, answered = turns[-1]
        shown = printable(f"{asked[:200]} -> {answered[-200:]}")
        note(f"{talk.name} goes on behind turn {len(turns)}: {shown}")


# ---------------------------------------------------------------------- in this process


def _here(name: str, options: dict[str, Any]) -> Talk:
    from foveal.batch import SamplingParams
    from foveal.cli.chatting.here import Here
    from foveal.cli.opening import open_engine, opened
    from foveal.engine import SHIPPED, model_folder
    from foveal.memory import Memory
    from foveal.memory.conversation import MOST_TOKENS, Conversation
    from foveal.text.messages import Thinking

    params = SamplingParams(
        temperature=options["temperature"],
        top_p=options["top_p"],
        seed=options["seed"],
        max_tokens=options["max_tokens"] or MOST_TOKENS,
    )
    begun: dict[str, Any] = {"system": options["system"], "thinking": Thinking(options["thinking"])}
    store = opened(options["folder"], create=True)
    saved = _info(store, name)
    about = None if options["memory"] is None else store.info(options["memory"])
    if saved is not None and about is not None and saved.facts.get("parent") != about.name:
        raise UserError(f"the conversation {name} is not about {about.name}; leave --memory out, or name another one")
    base = saved or about
    model = options["model"] or (None if base is not None else _model())
    engine = open_engine(model, options["threads"], base, memory_limit=options["memory_limit"], store=store)
    encoding = _encoding(model_folder(model or engine.name), engine.tokenizer)
    if saved is not None:
        if options["system"]:
            note(f"{name} goes on with the instructions that it began with; --system counts from /new on")
        chat = Conversation.load(engine, encoding, name, root=store, **begun)
    elif about is not None:
        with Memory.load(engine, about.name, root=store) as memory:
            chat = Conversation.begin(engine, encoding, memory=memory, store=store, **begun)
    else:
        chat = Conversation.begin(engine, encoding, store=store, **begun)
    zoom = _zoom(options)
    zooms = _zooms(zoom, engine.name) if chat.behind or zoom.every else False
    if engine.name in SHIPPED and not zooms:
        note(f"{engine.name} was not trained to chat: what it says means nothing (foveal convert smollm2 makes one)")
    return Here(chat, store, name, params, zoom, zooms=zooms, threads=options["threads"])


def _zoom(options: dict[str, Any]) -> Zoom:
    from foveal.cli.chatting.asked import Zoom
    from foveal.memory.asking.answering import DEFAULT_ZOOM

    every = False if options["no_zoom"] else None if options["zoom"] is None else True
    return Zoom(options["zoom"] or DEFAULT_ZOOM, options["with_"], options["max_tokens"], every)


def _zooms(zoom: Zoom, own: str) -> bool:
    """Whether every message is asked of what is there, if the conversation's own model is called `own`."""
    from foveal.memory.asking.chat_model import NoChatModel, default_chat_model

    if zoom.every is not None or zoom.with_ is not None:
        return zoom.every is not False
    try:
        return bool(default_chat_model(own))
    except NoChatModel:
        return False


def _info(store: MemoryStore, name: str) -> MemoryInfo | None:
    """The conversation of that name, if there is one. Raises `UserError` for what is none."""
    from foveal.memory import MemoryNotFound

    try:
        found = store.info(name)
    except MemoryNotFound:
        return None
    if found.problem is None and "chat" not in found.facts:
        raise UserError(f"{name} is a memory, and no conversation; foveal chat --memory {name} talks about it")
    return found


def _model() -> str:
    """What is talked to when nobody says: a person's own model that can chat, else the one that ships."""
    from foveal.engine import SHIPPED, own_model

    return "smollm2" if own_model("smollm2") is not None else SHIPPED[0]


def _encoding(folder: Path, tokenizer: Any) -> ChatEncoding:
    from foveal.text.chat import ChatUnsupported, chat_encoding

    try:
        return chat_encoding(folder, tokenizer)
    except ChatUnsupported as error:
        raise UserError(f"{error}; foveal convert smollm2 makes a model that can chat") from error


# ---------------------------------------------------------------------- at a server


def _remote(name: str, url: str, options: dict[str, Any]) -> Talk:
    from foveal.cli.chatting.remote import Remote, chats_folder
    from foveal.cli.server import Server
    from foveal.memory.conversation import MOST_TOKENS
    from foveal.memory.names import check_name

    server = Server(url, os.environ.get(KEY))
    models = server.models()
    if not models and options["model"] is None:
        raise UserError(f"{url} serves no model that this key may use")
    fields: dict[str, Any] = {
        "model": options["model"] or models[0],
        "temperature": options["temperature"],
        "top_p": options["top_p"],
        "max_tokens": options["max_tokens"] or MOST_TOKENS,
    }
    if options["seed"] is not None:
        fields["seed"] = options["seed"]
    if options["thinking"] != "off":
        fields["reasoning_effort"] = options["thinking"]
    if options["memory"] is not None:
        fields |= {"memory": check_name(options["memory"]), "citations": True}
    zoom = _zoom(options)
    talk = Remote.load(server, name, fields, zoom, folder=chats_folder())
    if talk is None:
        messages = [{"role": "system", "content": options["system"]}] if options["system"] else []
        talk = Remote(server, name, fields, messages, zoom, folder=chats_folder())
    if zoom.every and not talk.has_memory:
        raise UserError("--zoom looks into a memory, and this conversation is about none; give --memory NAME")
    return talk
