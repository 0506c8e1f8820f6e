"""`foveal why`: what a server found of its last prompts, and why not more."""

from __future__ import annotations

import os
from urllib.parse import urlencode

import click

from foveal.cli.extras import check_serving
from foveal.cli.options import json_option
from foveal.cli.output import note, print_json, printable
from foveal.cli.server import Json, Server

KEY = "FOVEAL_API_KEY"


@click.command("why")
@click.option(
    "--server", default="http://127.0.0.1:8000", metavar="URL", help="Where the server is; $FOVEAL_API_KEY is the key."
)
@click.option("--last", type=click.IntRange(1, 64), default=10, metavar="N", help="How many prompts to tell of.")
@click.option("--model", metavar="MODEL", help="Whose prompts; default: those of the first model that is served.")
@json_option
def command(server: str, last: int, model: str | None, json: bool) -> None:
    """Tell why a server's last prompts were not found whole.

    For each: how many of its tokens were found, and which token of which message was the first that differed.
    """
    check_serving()
    found = fetch(Server(server, os.environ.get(KEY)), last, model)
    if json:
        print_json({"server": server, "prompts": found})
    else:
        show(found)


def fetch(server: Server, last: int, model: str | None) -> list[Json]:
    """The answer of ``/v1/why``. Raises `UserError`."""
    query = urlencode({"limit": last, **({"model": model} if model else {})})
    return server.listed(f"/v1/why?{query}")


def show(found: list[Json]) -> None:
    """Print it as a table."""
    if not found:
        note("no prompt has come yet")
        return
    from foveal.cli.render import results, table

    listed = table("request", "tokens>", "found>", "why not more", "where")
    for prompt in found:
        listed.add_row(
            prompt["request"],
            f"{prompt['prompt_tokens']:,}",
            f"{prompt['reused_tokens']:,}",
            (prompt["reason"] or "all was found").replace("_", " "),
            _where(prompt),
        )
    results().print(listed)


def _where(prompt: Json) -> str:
    if prompt.get("message") is None:
        return "" if prompt["position"] is None else f"token {prompt['position']:,}"
    message = prompt["message"]
    there = f"message {message['index'] + 1} ({message['role']}), token {prompt['position']:,}"
    return f"{there}: {printable(repr(prompt['text'][:20]))} instead of {printable(repr(prompt['expected_text']))}"
