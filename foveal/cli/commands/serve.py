"""`foveal serve`: models and memories over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from foveal.cli.extras import check_serving
from foveal.cli.options import PATH, flag, memory_limit_option, store_option, threads_option
from foveal.cli.output import UserError, note, parse_count, parse_limit

if TYPE_CHECKING:
    from foveal.engine import Engine
    from foveal.server.settings import Settings

KEY = "FOVEAL_API_KEY"


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL...]", help="nano, a model directory, or NAME=DIRECTORY.")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, metavar="N", help="Port to listen on; 0 takes a free one."
)
@store_option
@memory_limit_option
@threads_option
@click.option("--cache", metavar="BYTES", help="Memory that sequences may take (8G); what does not fit waits.")
@click.option("--keys", type=PATH, help="TOML file of API keys (docs/serving.md); $FOVEAL_API_KEY is one more.")
@click.option("--new-key", metavar="NAME", help="Print a new secret and its lines for the file of keys, and exit.")
@flag("--insecure", "Ask for no key, wherever the server can be reached from.")
@click.option(
    "--alias", multiple=True, metavar="NAME=MODEL", help="Another name of a model; may be a pattern (claude-*=v4)."
)
@click.option("--root", "roots", multiple=True, type=PATH, help="Folder below which memories may be read from.")
@click.option("--context", metavar="TOKENS", help="Most tokens of a prompt with its reply (128k, 1M).")
@click.option("--output", metavar="TOKENS", default="4096", help="Tokens of a reply where the client names no limit.")
@click.option("--max-output", metavar="TOKENS", default="128k", help="Most tokens of a reply.")
@click.option(
    "--thinking",
    type=click.Choice(["off", "low", "high", "max"]),
    default="off",
    help="How much a model reasons where the client does not say.",
)
@click.option("--temperature", default=1.0, metavar="NUMBER", help="Of sampling, where the client names none.")
@click.option("--top-p", default=1.0, metavar="NUMBER", help="Of sampling, where the client names none.")
@click.option("--running", type=click.IntRange(1), default=64, metavar="N", help="Requests in work at once.")
@click.option("--waiting", type=click.IntRange(0), default=256, metavar="N", help="Requests that may wait for a place.")
@click.option("--patience", default=30.0, metavar="SECONDS", help="Seconds that a request waits before 429 or 503.")
@click.option("--time-limit", default=1800.0, metavar="SECONDS", help="Seconds that an answer may take.")
@click.option("--body-limit", default="64M", metavar="BYTES", help="Most bytes of a request.")
@click.option("--keep", metavar="TOKENS", default="1M", help="Tokens of earlier prompts kept in memory.")
@click.option(
    "--tool-format",
    type=click.Choice(["hermes", "llama3", "mistral"]),
    help="Form of tool calls of a chat template; default: told from the template.",
)
@click.option("--price", multiple=True, metavar="MODEL=IN,CACHED,OUT", help="What a million tokens cost.")
@flag("--no-save-prompts", "Do not save prompts in the store; a restart then begins without them.")
@flag("--otel", "Send spans of requests to OpenTelemetry (docs/serving.md).")
@flag("--log-requests", "Tell of each request on stderr, one JSON line each, without its text.")
def command(models: tuple[str, ...], new_key: str | None, **options: Any) -> None:
    """Serve models and memories over HTTP."""
    check_serving()
    if new_key is not None:
        _print_key(new_key)
        return
    serve(models or ("nano",), options)


def serve(models: tuple[str, ...], options: dict[str, Any], *, ready: Callable[[str], None] | None = None) -> None:
    """Open the models, listen, and answer until a signal comes. `ready` is told the address when all is open."""
    import asyncio

    from foveal.engine import model_folder
    from foveal.server.auth import Keys
    from foveal.server.opening import listen, log_requests, make_server, registry_of
    from foveal.server.tracing import OpenTelemetry

    named = [_named(model) for model in models]
    settings = _settings(options)
    keys = Keys.read(options["keys"], os.environ.get(KEY))
    settings.check_reach(len(keys))
    tracing = OpenTelemetry() if options["otel"] else None
    with listen(settings) as socket:  # before anything is opened: a port that is taken is told at once
        opened = {name: (_open(path, options), model_folder(path)) for name, path in named}
        registry = registry_of(opened, settings, tool_format=options["tool_format"])
        server = make_server(registry, keys, settings, tracing=tracing)
        if options["log_requests"]:
            log_requests()
        host, port = socket.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        note(f"foveal serves {', '.join(opened)} on {address}")
        if ready is not None:
            ready(address)
        asyncio.run(server.serve(sockets=[socket]))


def _named(model: str) -> tuple[str, str]:
    """The name that clients call a model, and where it is."""
    name, equals, path = model.partition("=")
    if equals and name and path:
        return name, path
    return (model if model == "nano" else Path(model).resolve().name), model


def _open(path: str, options: dict[str, Any]) -> Engine:
    from foveal.engine import Engine
    from foveal.memory import store_root

    limit = parse_limit(options["memory_limit"])
    return Engine.open(
        path,
        threads=options["threads"],
        memory_limit=limit,
        cache=options["cache"],
        scratch=store_root(options["folder"]) if limit is not None and store_root(options["folder"]).is_dir() else None,
    )


def _settings(options: dict[str, Any]) -> Settings:
    from foveal.server.settings import Settings
    from foveal.text.messages import Thinking

    return Settings(
        host=options["host"],
        port=options["port"],
        insecure=options["insecure"],
        aliases=dict(_pair(alias, "--alias NAME=MODEL") for alias in options["alias"]),
        roots=tuple(_folder(root) for root in options["roots"]),
        store=options["folder"],
        body_bytes=parse_limit(options["body_limit"]) or 0,
        context_tokens=parse_count(options["context"]) if options["context"] else None,
        output_tokens=parse_count(options["output"]),
        most_output_tokens=parse_count(options["max_output"]),
        thinking=Thinking(options["thinking"]),
        temperature=options["temperature"],
        top_p=options["top_p"],
        running=options["running"],
        waiting=options["waiting"],
        patience=options["patience"],
        request_seconds=options["time_limit"],
        kept_tokens=parse_count(options["keep"]),
        save_prompts=not options["no_save_prompts"],
        prices=dict(_price(price) for price in options["price"]),
    )


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{text!r} is not of the form {form}")
    return name, value


def _price(text: str) -> tuple[str, Any]:
    from foveal.server.settings import Price

    name, values = _pair(text, "--price MODEL=IN,CACHED,OUT")
    try:
        read, cached, written = map(float, values.split(","))
    except ValueError:
        raise UserError(f"{text!r} is not of the form --price MODEL=IN,CACHED,OUT") from None
    return name, Price(input=read, cached=cached, output=written)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path} is no folder; --root names one below which memories may be read from")
    return path


def _print_key(name: str) -> None:
    from foveal.server.auth import digest_of, new_secret

    secret = new_secret()
    click.echo(f'secret (shown this once): {secret}\n\n[{name}]\nsha256 = "{digest_of(secret).hex()}"')
