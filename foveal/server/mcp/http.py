"""MCP over HTTP, at /mcp itself: stateless, so that any process may answer any request.

The library takes half a second to load, so that is done when the first request for it comes.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from foveal.server.edge import host_of
from foveal.server.failures import ApiError, response_of
from foveal.server.service import Service
from foveal.server.settings import is_loopback


class McpEndpoint:
    """An ASGI application. A key is asked for as everywhere; pages of other sites are refused."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._app: ASGIApp | None = None
        self._opening = asyncio.Lock()
        self._closing = asyncio.Event()
        self._sessions: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            _check_origin(request)
            self._service.keys.caller(request)
        except ApiError as error:
            await response_of(request, error)(scope, receive, send)
            return
        if request.method != "POST":  # nothing is sent but answers, and there are no sessions to end
            await Response(status_code=405, headers={"allow": "POST"})(scope, receive, send)
            return
        with contextlib.suppress(ClientDisconnect):  # before all of it had come: nobody waits for an answer
            await (await self._opened())(scope, receive, send)

    async def close(self) -> None:
        """End all sessions."""
        self._closing.set()
        if self._sessions is not None:
            await self._sessions

    async def _opened(self) -> ASGIApp:
        async with self._opening:
            if self._app is None:
                await asyncio.to_thread(__import__, "foveal.server.mcp.tools")
                self._app = await self._open()
        return self._app

    async def _open(self) -> ASGIApp:
        from mcp.server.transport_security import TransportSecuritySettings

        from foveal.server.mcp.tools import make_tools

        server, running = make_tools(self._service), asyncio.Event()
        server.streamable_http_app(
            stateless_http=True,
            json_response=True,
            max_request_body_size=self._service.settings.body_bytes,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # done here
        )

        async def sessions() -> None:
            async with server.session_manager.run():
                running.set()
                await self._closing.wait()

        self._sessions = asyncio.create_task(sessions())
        await running.wait()
        return server.session_manager.handle_request  # the library's own application would make a 500 of our errors


def _check_origin(request: Request) -> None:
    """Raises `ApiError` for a page of another site."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    host = host_of(origin)
    own = host_of(f"//{request.headers.get('host', '')}")
    if not host or (host != own and not is_loopback(host)):
        raise ApiError("forbidden", f"{origin} may not use this server")
