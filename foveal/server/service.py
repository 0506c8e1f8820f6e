"""What every route works with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Request

from foveal.server.admission import Gate
from foveal.server.answers import answers, whole
from foveal.server.auth import Key, Keys
from foveal.server.metrics import Metrics
from foveal.server.pieces import Asked, Piece, Whole
from foveal.server.registry import Registry
from foveal.server.responses import Responses
from foveal.server.settings import Settings
from foveal.server.tracing import Tracing
from foveal.server.works import Works


class Service:
    """One server's models, keys, places and numbers."""

    def __init__(self, registry: Registry, keys: Keys, settings: Settings, *, tracing: Tracing | None = None) -> None:
        self.tracing = tracing or Tracing()
        self.registry, self.keys, self.settings = registry, keys, settings
        self.gate = Gate(settings.running, settings.waiting, settings.patience)
        self.works = Works()
        self.responses = Responses.beside(settings.store)
        self.closing = False
        self.metrics = Metrics(self)

    def stream(self, asked: Asked) -> AsyncGenerator[Piece | None]:
        """The pieces of an answer, None while nothing comes."""
        return self.works.stream(lambda: answers(self, asked), self.settings.ping_seconds)

    async def whole(self, request: Request, asked: Asked) -> Whole:
        """A whole answer; it ends when the client leaves."""
        return await self.works.unless_left(request, whole(answers(self, asked)))

    async def drain(self) -> None:
        """Take nothing more in, and finish what is in work; what takes too long is cancelled."""
        self.gate.closed = True
        await self.works.drain(self.settings.drain_seconds)

    async def close(self) -> None:
        """`drain`, and give everything back."""
        await self.drain()
        self.closing = True
        await self.registry.close()
        self.responses.close()
        await asyncio.to_thread(self.tracing.close)


def service_of(request: Request) -> Service:
    """The server that a request came to."""
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


async def caller(request: Request) -> Key:  # a function that is not async would be called in a thread
    """Who sent a request. Raises `ApiError`."""
    return service_of(request).keys.caller(request)


Caller = Annotated[Key, Depends(caller)]
"""The key of whoever sent a request, as an argument of a route."""
