"""The tools: each is what a route of memories does, in the words of an agent."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field
from starlette.requests import Request

from foveal import __version__
from foveal.errors import FovealError
from foveal.memory import Memory, MemoryNotFound, list_memories
from foveal.memory.keeping import fork_memory
from foveal.process.logs import logger
from foveal.server.auth import ANYBODY, Key
from foveal.server.citing import freshness, lines_in
from foveal.server.failures import ApiError, as_failure
from foveal.server.memories import asking, working
from foveal.server.memories.routes import append_text, recalled
from foveal.server.memories.schema import AppendRequest, RecallRequest
from foveal.server.registry import Shelf
from foveal.server.service import Service
from foveal.server.works import in_thread

_LOG = logger(__name__)

Json = dict[str, Any]
Tool = Callable[..., Coroutine[Any, Any, Json]]
Text = Annotated[str, Field(min_length=1)]

INSTRUCTIONS = (
    "Memories are sources (code bases, documents, notes) that were read once and are kept compressed. Use search to "
    "find a text word for word, recall to continue from its beginning, read_lines to see lines that were cited, and "
    "ask to put a question to a whole memory. Citations name file and lines, and say whether the file has changed."
)
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
MOST_LINES = 400
_PLACE = ("number", "path", "first_line", "last_line", "text")
"""What an agent is told of a place."""


def make_tools(service: Service) -> MCPServer[Any]:
    """The MCP server over a service. Over HTTP each call is made with the key of its request."""
    server = _quiet_server()
    tools = _Tools(service)
    reading: list[Tool] = [tools.memories, tools.search, tools.recall, tools.read_lines, tools.ask]
    writing: list[Tool] = [tools.fork, tools.append, tools.sync]
    for tool in reading:
        server.add_tool(_telling(tool, service), description=_described(tool), annotations=READS)
    for tool in writing:
        server.add_tool(_telling(tool, service), description=_described(tool), annotations=WRITES)
    return server


def _quiet_server() -> MCPServer[Any]:
    """The library's server, which shall not decide where this process logs."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # The tools never change, so there is nothing to listen for; streams without end would hold up the server's end.
    server: MCPServer[Any] = MCPServer("foveal", instructions=INSTRUCTIONS, version=__version__, subscriptions=False)
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)
    return server


def _described(tool: Tool) -> str:
    """A tool's docstring in one line."""
    return " ".join((tool.__doc__ or "").split())


def _telling(tool: Tool, service: Service) -> Tool:
    """A tool in a task of its own, which ends when the client leaves or cancels the call. Its failures are told to the
    agent in their own words."""

    @functools.wraps(tool)
    async def call(**options: Any) -> Json:
        request = options["ctx"].request_context.request
        try:
            if isinstance(request, Request):
                return await service.works.unless_left(request, tool(**options))
            return await service.works.apart(tool(**options))
        except Exception as error:
            failure = as_failure(error)
            if failure.code == "failed" and not isinstance(error, FovealError):
                _LOG.exception("the tool %s failed", tool.__name__)
            raise ToolError(str(failure)) from error

    return call


class _Tools:
    def __init__(self, service: Service) -> None:
        self._service = service

    def _key(self, ctx: Context[Any, Any]) -> Key:
        """Whose call it is. Over standard input there is one user only, who started the process."""
        headers = ctx.headers
        return ANYBODY if headers is None else self._service.keys.caller_of(headers)

    def _shelf(self, ctx: Context[Any, Any], name: str | None) -> tuple[Key, Shelf]:
        key = self._key(ctx)
        if name is not None and not key.may_see(name):
            raise MemoryNotFound(f"there is no memory {name!r}")
        registry = self._service.registry
        model = registry.find(next(iter(registry.names(key)), None), key)
        return key, registry.shelf(model, key)

    async def memories(self, ctx: Context[Any, Any]) -> Json:
        """List the memories there are: their names, and how many tokens and files each holds."""
        key, shelf = self._shelf(ctx, None)
        found = await asyncio.to_thread(list_memories, shelf.store)
        told = [working.told(info) for info in found if key.may_see(info.name) and not shelf.is_own(info)]
        return {"memories": told}

    async def search(self, memory: str, text: Text, ctx: Context[Any, Any], limit: int = 20) -> Json:
        """Find the lines of a memory that hold a text, word for word."""
        key, shelf = self._shelf(ctx, memory)
        async with self._service.gate.place(key), shelf.fork(memory) as found:
            most = max(1, min(limit, 1000))
            matches, complete = await in_thread(lambda: working.search(found, text, most))
        return {"matches": matches, "complete": complete}

    async def recall(self, memory: str, cue: Text, ctx: Context[Any, Any], max_tokens: int = 128) -> Json:
        """Continue a text out of a memory: give the beginning, get what follows it, with the lines it came from."""
        key, shelf = self._shelf(ctx, memory)
        body = RecallRequest(cue=cue, max_tokens=max(1, min(max_tokens, 4096)))
        return await recalled(self._service, key, shelf, memory, body)

    async def read_lines(
        self, memory: str, path: str, ctx: Context[Any, Any], first_line: int = 1, last_line: int = MOST_LINES
    ) -> Json:
        """Read lines of a file as the memory holds them, and learn whether the file has changed since."""
        _, shelf = self._shelf(ctx, memory)
        async with shelf.fork(memory) as found:
            return await in_thread(lambda: _lines(found, path, first_line, last_line))

    async def ask(
        self,
        memory: str,
        question: Annotated[str, Field(min_length=1, max_length=8000)],
        ctx: Context[Any, Any],
        zoom: int = asking.DEFAULT_ZOOM,
        max_tokens: int = asking.ANSWER_TOKENS,
    ) -> Json:
        """Put a question to a memory in plain words. The places that fit best are read again; the answer comes with
        the lines that it rests on."""
        key, shelf = self._shelf(ctx, memory)
        asked = asking.Asked(question, zoom=max(0, min(zoom, 32)), max_tokens=max(1, min(max_tokens, 4096)))
        answer = await asking.answered(self._service, key, shelf, memory, asked)
        shown = [{name: place[name] for name in _PLACE} for place in answer["places"]]
        return {"answer": answer["text"], "citations": answer["citations"], "places": shown}

    async def fork(self, memory: str, name: str, ctx: Context[Any, Any], at: int | None = None) -> Json:
        """Make a second memory of the first tokens of one (default: all). Nothing is copied or read again."""
        key, shelf = self._shelf(ctx, memory)
        key.check_writes()
        if not key.may_see(name):
            raise ApiError("forbidden", f"the key {key.name} may not make a memory {name!r}")
        await working.show(shelf, memory)
        return await asyncio.to_thread(fork_memory, memory, name, shelf.store, at=at)

    async def append(
        self,
        memory: str,
        text: Text,
        ctx: Context[Any, Any],
        author: Annotated[str, Field(max_length=100)] = "",
        expected_head: str | None = None,
    ) -> Json:
        """Add a text behind a memory that agents share. With expected_head, only if nobody has added since."""
        key, shelf = self._shelf(ctx, memory)
        key.check_writes()
        body = AppendRequest(text=text, author=author, expected_head=expected_head)
        await working.show(shelf, memory)
        async with self._service.gate.place(key):
            return await in_thread(lambda: append_text(shelf, memory, body))

    async def sync(self, memory: str, ctx: Context[Any, Any]) -> Json:
        """Bring a memory up to date with its files; says which had changed."""
        key, shelf = self._shelf(ctx, memory)
        key.check_writes()
        await working.show(shelf, memory)
        changes: Json = {}
        work = working.syncing(shelf, memory, None, changes)
        async for event in working.events(self._service, key, work, shelf, memory):
            if event["type"] == "progress" and event["tokens_total"]:
                await ctx.report_progress(event["tokens_done"], event["tokens_total"])
        return {"memory": await working.show(shelf, memory), "changes": changes}


def _lines(memory: Memory, path: str, first: int, last: int) -> Json:
    """Lines of the present version of a file."""
    text = working.text_of(memory, path)
    if text is None:
        raise ApiError("not_found", f"the memory holds no file {path!r}")
    lines = lines_in(text)
    first, last = max(1, first), min(last, first + MOST_LINES - 1, len(lines))
    said = [{"line": number, "text": lines[number - 1]} for number in range(first, last + 1)]
    return {"path": path, "lines": said, "all_lines": len(lines)} | freshness(memory, path)
