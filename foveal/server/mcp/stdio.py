"""MCP over standard input and output: for one user, who started the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from concurrent.futures import CancelledError
from typing import Any, cast

from mcp.server.stdio import stdio_server

from foveal.server.mcp.tools import make_tools
from foveal.server.service import Service

AHEAD = 64
"""Lines that may wait to be taken in."""


async def serve(service: Service) -> None:
    """Until standard input ends, or nobody reads the answers any more."""
    server = make_tools(service)._lowlevel_server  # its own loop over stdin cannot be ended by a signal
    try:
        async with stdio_server(stdin=cast(Any, _Lines())) as (read, write):
            await server.run(read, write, server.create_initialization_options())
    except* BrokenPipeError:
        logging.getLogger(__name__).debug("nobody reads the answers any more")


class _Lines:
    """Standard input, line by line. Its thread, whose read cannot be broken off, holds up no end of the process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue(AHEAD)
        self._file = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", errors="replace")
        with open(os.devnull) as nothing:  # no child shall take a line away
            os.dup2(nothing.fileno(), sys.stdin.fileno())
        threading.Thread(target=self._read, daemon=True).start()

    def __aiter__(self) -> _Lines:
        return self

    async def __anext__(self) -> str:
        line = await self._lines.get()
        if line is None:
            raise StopAsyncIteration
        return line

    def _read(self) -> None:
        with contextlib.suppress(RuntimeError, CancelledError):  # the loop is closed: nobody listens
            with contextlib.suppress(OSError):  # as at the end
                for line in self._file:
                    self._give(line)
            self._give(None)

    def _give(self, line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop).result()
