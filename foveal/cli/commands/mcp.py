"""`foveal mcp`: memories as tools of an agent, over standard input and output."""

from __future__ import annotations

from pathlib import Path

import click

from foveal.cli.extras import check_serving
from foveal.cli.options import memory_limit_option, model_option, store_option, threads_option
from foveal.cli.output import parse_limit


@click.command("mcp")
@model_option
@store_option
@memory_limit_option
@threads_option
def command(model: str | None, folder: Path | None, memory_limit: str | None, threads: int | None) -> None:
    """Give an agent memories as MCP tools, on stdin and stdout.

    `foveal serve` has the same at /mcp.
    """
    check_serving()
    import asyncio

    from foveal.engine import Engine, model_folder
    from foveal.server.opening import registry_of, serve_stdio
    from foveal.server.settings import Settings

    name = model or "nano"
    engine = Engine.open(name, threads=threads, memory_limit=parse_limit(memory_limit))
    settings = Settings(store=folder)
    asyncio.run(serve_stdio(registry_of({engine.name: (engine, model_folder(name))}, settings), settings))
