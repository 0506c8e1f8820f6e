"""What happens to every request before and after its route: a name, limits, a line in the log."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foveal.process.logs import logger
from foveal.server.failures import ApiError, response_of
from foveal.server.service import Service
from foveal.server.settings import is_loopback
from foveal.server.tracing import PARENT
from foveal.server.wire import new_id

_LOG = logger("foveal.server.requests")

OPEN = ("/", "/health", "/ready", "/openapi.json")
"""Paths that ask for no key."""
PAGE = "/page/"
"""What the page for browsers is made of: it asks for no key either."""


class Edge:
    """An ASGI middleware. No text of a prompt or a reply is ever logged."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(self._service, scope, receive, send)
        PARENT.set(Headers(scope=scope).get("traceparent", ""))
        try:
            visit.check()
            await self._app(scope, visit.receive, visit.send)
        except ApiError as error:
            if visit.status:
                raise
            await response_of(Request(scope), error)(scope, receive, visit.send)
        finally:
            visit.ended()


class _Visit:
    """One request."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        self._service, self._scope, self._receive, self._send = service, scope, receive, send
        self._id = new_id("req_")
        scope.setdefault("state", {})["request_id"] = self._id
        self._began, self._bytes, self.status = time.perf_counter(), 0, 0
        moves = scope["path"].startswith("/v1/memories/") and scope["path"].endswith(("/import", "/upload"))
        self._most = service.settings.import_bytes if moves else service.settings.body_bytes

    def check(self) -> None:
        """Raises `ApiError` for a body that is said to be too large, where a key is missing, and, where none is asked
        for, for pages of other sites in a browser."""
        headers = {name: value.decode("latin-1") for name, value in self._scope["headers"]}
        length = headers.get(b"content-length", "")
        if length.isdigit() and int(length) > self._most:
            raise self._too_large()
        path = self._scope["path"]
        if len(self._service.keys) and path not in OPEN and not path.startswith(PAGE):
            self._service.keys.caller(Request(self._scope))  # before anything of the body is read
        if len(self._service.keys) or self._service.settings.insecure:
            return
        origin, host = headers.get(b"origin"), headers.get(b"host", "127.0.0.1")
        for place in (f"//{host}", origin or "//127.0.0.1"):
            if not is_loopback(host_of(place)):
                raise ApiError("forbidden", f"{place.removeprefix('//')} may not use this server; it asks for no key")

    async def receive(self) -> Message:
        """The next message of the client. Raises `ApiError` for a body that is too large."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            if self._bytes > self._most:
                self._scope["state"]["failure"] = self._too_large()  # others would make of it that it cannot be read
                raise self._scope["state"]["failure"]
        return message

    async def send(self, message: Message) -> None:
        """A message to the client, with the request's name in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            name = self._id.encode()
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", name), (b"request-id", name)]
        await self._send(message)

    def ended(self) -> None:
        """Count it, and tell the log."""
        seconds = time.perf_counter() - self._began
        route = self._scope.get("route")
        path = getattr(route, "path", "other")
        self._service.metrics.requests.labels(path, str(self.status)).inc()
        self._service.metrics.whole.observe(seconds)
        told = {"request": self._id, "path": path, "status": self.status, "seconds": round(seconds, 4)}
        _LOG.info("%s %s %d %.3fs", self._scope["method"], path, self.status, seconds, extra={"foveal": told})

    def _too_large(self) -> ApiError:
        return ApiError("too_large", f"the body is larger than {self._most:,} bytes")


def host_of(place: str) -> str:
    """The host that an address names; empty where it names none."""
    try:
        return urlsplit(place).hostname or ""
    except ValueError:
        return ""
