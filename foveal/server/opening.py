"""From names and folders to a server that runs."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from pathlib import Path

import uvicorn

from foveal.aio import Engine
from foveal.errors import ParameterError
from foveal.server.app import make_app
from foveal.server.auth import Keys
from foveal.server.registry import Registry
from foveal.server.service import Service
from foveal.server.settings import Settings
from foveal.server.tracing import Tracing
from foveal.server.wire import dumps
from foveal.text.chat import ChatEncoding, ChatUnsupported, chat_encoding


def encoding_of(engine: Engine, folder: Path, tool_format: str | None = None) -> tuple[ChatEncoding | None, str]:
    """The chat encoding of a model, or None and why there is none."""
    try:
        return chat_encoding(folder, engine.tokenizer, tool_format=tool_format), ""
    except ChatUnsupported as error:
        return None, str(error)


def registry_of(
    models: Mapping[str, tuple[Engine, Path]], settings: Settings, *, tool_format: str | None = None
) -> Registry:
    """The models, by the name that clients call them. Raises `ParameterError` for an alias of no model."""
    for alias, name in settings.aliases.items():
        if name not in models:
            raise ParameterError(f"the alias {alias} names {name}, which is not served; there are: {', '.join(models)}")
    return Registry(
        {name: (engine, *encoding_of(engine, folder, tool_format)) for name, (engine, folder) in models.items()},
        settings,
    )


class _Server(uvicorn.Server):
    """Takes nothing more in as soon as it is asked to stop, and ends what takes too long, so that clients are told. A
    second Ctrl-C ends everything at once, in the same order."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then what uvicorn does."""
        service: Service = self.config.app.state.service  # type: ignore[union-attr]
        drained = asyncio.create_task(service.drain())
        ending = asyncio.create_task(super().shutdown(sockets))
        while not (ending.done() or self.force_exit):
            await asyncio.wait({ending}, timeout=0.1)
        if self.force_exit:
            await service.works.drain(0)
        await drained
        await ending
        if self.force_exit:  # uvicorn leaves the rest out
            if self.server_state.tasks:
                await asyncio.wait(set(self.server_state.tasks), timeout=1)  # what has ended is told
            await self.lifespan.shutdown()


def make_server(
    registry: Registry, keys: Keys, settings: Settings, *, tracing: Tracing | None = None
) -> uvicorn.Server:
    """The server, not yet listening. Raises `ParameterError` where it must not listen."""
    settings.check_reach(len(keys))
    config = uvicorn.Config(
        make_app(registry, keys, settings, tracing=tracing),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.drain_seconds) + 5,
        server_header=False,
        lifespan="on",
    )
    return _Server(config)


async def serve_stdio(registry: Registry, settings: Settings) -> None:
    """MCP over standard input and output, until that ends."""
    from foveal.server.mcp import stdio

    service = Service(registry, Keys(), settings)
    try:
        await stdio.serve(service)
    finally:
        await service.close()


def log_requests() -> None:
    """From now on each request is told on stderr as one line of JSON. No text of prompts or replies is in it."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json())
    logger = logging.getLogger("foveal.server.requests")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _Json(logging.Formatter):
    """What a record tells beside its message, as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        told = getattr(record, "foveal", {"message": record.getMessage()})
        return dumps({"at": round(record.created, 3)} | told).decode()


def listen(settings: Settings) -> socket.socket:
    """The socket to serve on. Raises `ParameterError` for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, so that asyncio sets TCP_NODELAY
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
        found.listen(2048)  # who comes while the models are opened waits
    except OSError as error:
        found.close()
        raise ParameterError(f"cannot listen on {settings.host} port {settings.port}: {error}") from error
    found.set_inheritable(True)
    return found
