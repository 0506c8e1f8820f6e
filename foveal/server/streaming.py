"""Answers as server-sent events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from fastapi import Request
from starlette.responses import StreamingResponse

from foveal.errors import FovealError
from foveal.process.logs import logger
from foveal.server.failures import as_failure
from foveal.server.pieces import Asked, Piece
from foveal.server.service import Service

_LOG = logger(__name__)

BeforeEnd = Callable[[], Awaitable[None]]

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Writer(Protocol):
    """Says in one API's events what an answer says."""

    def piece(self, piece: Piece | None) -> list[bytes]:
        """What is sent for a piece; None: nothing has come for a while."""
        ...

    def end(self) -> list[bytes]:
        """Behind the last piece."""
        ...

    def failed(self, error: FovealError) -> list[bytes]:
        """In the place of the end."""
        ...


async def streamed(
    request: Request,
    service: Service,
    pieces: AsyncGenerator[Piece | None],
    writer: Writer,
    before_end: BeforeEnd | None = None,
) -> StreamingResponse:
    """Send what `pieces` give. The first is waited for: what is wrong with the request has a status of its own."""
    first = await service.works.unless_left(request, _first(pieces))
    return events(_body(first, pieces, writer, before_end))


def events(body: AsyncGenerator[bytes]) -> StreamingResponse:
    """A body of server-sent events."""
    return StreamingResponse(body, media_type="text/event-stream", headers=HEADERS)


async def stream(
    request: Request, service: Service, asked: Asked, writer: Writer, before_end: BeforeEnd | None = None
) -> StreamingResponse:
    """The answer to one request as events. `before_end` is done before the last of them is sent."""
    return await streamed(request, service, service.stream(asked), writer, before_end)


async def _first(pieces: AsyncGenerator[Piece | None]) -> Piece | None:
    try:
        async for piece in pieces:
            if piece is not None:
                return piece
        return None
    except BaseException:
        await pieces.aclose()
        raise


async def _body(
    first: Piece | None, pieces: AsyncGenerator[Piece | None], writer: Writer, before_end: BeforeEnd | None
) -> AsyncGenerator[bytes]:
    try:
        async with contextlib.aclosing(pieces):
            yield b"".join(writer.piece(first))
            async for piece in pieces:
                if data := b"".join(writer.piece(piece)):
                    yield data
        if before_end is not None:
            await before_end()
        yield b"".join(writer.end())
    except Exception as error:
        failure = as_failure(error)
        if failure.code == "failed":
            _LOG.exception("an answer failed")
        yield b"".join(writer.failed(failure))
