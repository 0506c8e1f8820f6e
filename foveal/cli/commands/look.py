"""`foveal look`: memories in a browser."""

from __future__ import annotations

import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import click

from foveal.cli.commands import serve as serving
from foveal.cli.completing import memory_names
from foveal.cli.extras import check_serving
from foveal.cli.opening import model_of, opened
from foveal.cli.options import flag, memory_limit_option, store_option, threads_option
from foveal.cli.output import UserError, note
from foveal.cli.server import Refused, Server


@click.command("look")
@click.argument(
    "name", required=False, shell_complete=memory_names, help="Memory to open; default: all of them are listed."
)
@click.option("--server", metavar="URL", help="A server that runs already; default: one is started for this.")
@click.option(
    "--model", multiple=True, metavar="MODEL", help="Model that is served; default: the memory's own, else nano."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Port of the server that is started; 0 takes a free one.",
)
@flag("--no-browser", "Print the address, and open no browser.")
@store_option
@memory_limit_option
@threads_option
def command(
    name: str | None,
    server: str | None,
    model: tuple[str, ...],
    port: int,
    no_browser: bool,
    folder: Path | None,
    memory_limit: str | None,
    threads: int | None,
) -> None:
    """Look at memories in a browser.

    Chat, see the cited lines, and where each word of an answer looked.

    Without --server a server is started that only this machine can reach; Ctrl-C ends it.
    """
    check_serving()

    def show(url: str) -> None:
        address = f"{url.rstrip('/')}/{f'#/m/{quote(name)}' if name else ''}"
        note(f"the page is at {address}")
        if not no_browser:  # a browser in the terminal would keep us until it ends
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    if server is not None:
        if not server.startswith(("http://", "https://")):
            raise UserError(f"{server!r} is no address of a server; give one such as http://127.0.0.1:8000")
        with suppress(Refused):  # it is there, and its page may be open to who has signed in
            Server(server, None).open("/health").close()
        show(server)
        return
    models = model or _models(name, folder)
    arguments = ["--port", str(port), "--temperature", "0"]
    given = (("--store", folder), ("--memory-limit", memory_limit), ("--threads", threads))
    arguments += [part for option, value in given if value is not None for part in (option, str(value))]
    options = serving.command.make_context("serve", arguments).params
    del options["models"], options["new_key"]
    serving.serve(models, options, ready=show)


def _models(name: str | None, folder: Path | None) -> tuple[str, ...]:
    """The model of memory `name`, and one that can word answers, where there is one. Raises `MemoryNotFound`."""
    from foveal.engine import SHIPPED, own_model
    from foveal.memory import memory_info
    from foveal.memory.asking.chat_model import SUGGESTED

    own = model_of(memory_info(name, opened(folder))) if name is not None else SHIPPED[0]
    return (own, SUGGESTED) if own in SHIPPED and own_model(SUGGESTED) is not None else (own,)
