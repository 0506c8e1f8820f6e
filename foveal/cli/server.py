"""A server that speaks OpenAI's API, asked by the command line."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from foveal.cli.output import UserError

Json = dict[str, Any]

MOST_REFUSAL = 1 << 16
"""Bytes of a refusal that are read."""
MOST_LINE = 1 << 24
"""Bytes of an event, or of a list, at most."""
CONNECTING = 30.0
"""Seconds after which a server that does not take a connection is given up."""
PATIENCE = 600.0
"""Seconds without a byte after which a server is given up."""


class Refused(UserError):
    """A server says that it will not: with what HTTP status (0: in the middle of an answer), code and field."""

    def __init__(self, message: str, status: int, said: Json) -> None:
        super().__init__(message)
        self.http, self.detail, self.param = status, said.get("code"), said.get("param")


class Server:
    """A server that speaks OpenAI's API."""

    def __init__(self, url: str, key: str | None) -> None:
        """url: with or without ``/v1``.   key: None or empty for none. Raises `UserError` for what is none."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._host, self._port, self._path, self._secure = _place(self.url)
        if key and not (key.isascii() and key.isprintable()):
            raise UserError("what $FOVEAL_API_KEY holds is no key: it has a line break, or characters beyond ASCII")
        self._headers = {
            "content-type": "application/json",
            "accept": "text/event-stream, application/json",
            "connection": "close",  # so that closing an answer closes its socket
        }
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def open(
        self, path: str, body: Json | None = None, *, opened: Callable[[socket.socket], None] = lambda _: None
    ) -> http.client.HTTPResponse:
        """The answer of a route. `opened` is given the socket before anything is sent. Raises `UserError`."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECTING)
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.connect()
            assert isinstance(connection.sock, socket.socket)
            connection.sock.settimeout(PATIENCE)
            opened(connection.sock)
            connection.request("GET" if body is None else "POST", self._path + path, data, self._headers)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            refused = isinstance(error, ConnectionRefusedError)
            why = "no server answers there; `foveal serve` starts one" if refused else error
            raise UserError(f"{self.url} cannot be asked: {why}") from error
        if answer.status != 200:
            raise self._refused(answer)
        return answer

    def stream(self, path: str, body: Json) -> Stream:
        """The events of an answer. It is asked for when the iteration begins."""
        return Stream(self, path, body)

    def _refused(self, answer: http.client.HTTPResponse) -> Refused:
        with answer:
            try:
                said = _error_in(json.loads(answer.read(MOST_REFUSAL)))
            except (OSError, http.client.HTTPException, ValueError, RecursionError):
                said = {}
        return Refused(f"{self.url} refuses: {said.get('message') or answer.reason}", answer.status, said)

    def listed(self, path: str) -> list[Json]:
        """What a route that answers with a list has in it. Raises `UserError`."""
        answer = self.open(path)
        try:
            with answer:
                found = json.loads(answer.read(MOST_LINE))["data"]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self.url} answers {path} with no list") from error
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise UserError(f"{self.url} answers {path} with no list")
        return found

    def models(self) -> list[str]:
        """Names of what it serves. Raises `UserError`."""
        return [str(model["id"]) for model in self.listed("/v1/models") if "id" in model]


def _place(url: str) -> tuple[str, int | None, str, bool]:
    """Host, port, path, and whether it is encrypted. Raises `UserError`."""
    try:
        place = urlsplit(url)
        host, port = place.hostname or "", place.port
        host.encode("idna")
    except ValueError:
        place, host, port = urlsplit(""), "", None
    if place.username is not None or place.password is not None:
        raise UserError("the address of a server has no name and no password in it; put the key into $FOVEAL_API_KEY")
    sound = host.isprintable() and " " not in host and place.path.isascii() and place.path.isprintable()
    if place.scheme not in ("http", "https") or not host or not sound or " " in place.path:
        raise UserError(f"{url!r} is no address of a server; give one like http://127.0.0.1:8000")
    return host, port, place.path, place.scheme == "https"


class Stream:
    """Server-sent events, as the objects that they carry. Iterate once."""

    def __init__(self, server: Server, path: str, body: Json) -> None:
        self._server, self._path, self._body = server, path, body
        self._wire: socket.socket | None = None
        self._answer: http.client.HTTPResponse | None = None
        self.stopped = False

    def stop(self) -> None:
        """End it: the iteration ends with what came. Never waits: a signal's handler may call it."""
        self.stopped = True
        if self._wire is not None:
            with suppress(OSError):
                self._wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        if self._answer is not None:
            self._answer.close()

    def __iter__(self) -> Iterator[Json]:
        """Raises `UserError` for what is none, `Refused` for an error that is told."""
        try:
            self._answer = self._server.open(self._path, self._body, opened=self._opened)
        except UserError:
            if self.stopped:
                return
            raise
        with self._answer as answer:
            try:
                yield from self._events(answer)
            except (OSError, http.client.HTTPException) as error:
                if not self.stopped:
                    raise UserError(f"the server broke the answer off: {error}") from error

    def _opened(self, wire: socket.socket) -> None:
        self._wire = wire
        if self.stopped:  # meanwhile
            self.stop()

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[Json]:
        while line := answer.readline(MOST_LINE):
            if len(line) == MOST_LINE:
                raise UserError("the server sent a line without end")
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except (ValueError, RecursionError) as error:
                if self.stopped:  # in the middle of an event
                    return
                raise UserError(f"the server sent what is no JSON: {data[:60]!r}") from error
            if isinstance(event, dict) and event.get("error"):
                said = _error_in(event)
                did = "refuses" if said.get("type") == "invalid_request_error" else "failed"
                raise Refused(f"the server {did}: {said.get('message') or event['error']}", 0, said)
            yield event


def _error_in(document: Any) -> Json:
    """What an error tells of itself; nothing where it has another form."""
    found = document.get("error") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}
