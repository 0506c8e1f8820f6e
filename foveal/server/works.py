"""Answers in work, each in a task of its own: whoever reads them may leave, and the work ends with them.

The web framework cancels in a way that comes again at every wait, so nothing could be given back in order. So work
never runs in the task of a request; that one only reads what has come, and cancels when it goes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from foveal.server.failures import ApiError

T = TypeVar("T")

AHEAD = 64
"""Pieces that may wait for a slow reader; then the work waits."""


class _End:
    """Ends a stream, perhaps with an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Works:
    """The tasks of a server."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` as a task that `drain` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stream(
        self, source: Callable[[], AsyncGenerator[T]], patience: float | None = None
    ) -> AsyncGenerator[T | None]:
        """What `source` gives, None whenever nothing came for `patience` seconds. Closing it cancels the work."""
        pieces: asyncio.Queue[T | _End] = asyncio.Queue(AHEAD)
        task = self.begin(_pump(source(), pieces))
        try:
            while True:
                piece = await _next(pieces, patience)
                if isinstance(piece, _End):
                    if piece.error is not None:
                        raise piece.error
                    return
                yield piece
        finally:
            task.cancel()

    async def unless_left(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled if the client leaves. Raises `ApiError` then."""
        task, watch = self.begin(work), asyncio.create_task(_left(request))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ApiError("cancelled", "the client has left")
            if task.cancelled():
                raise ApiError("unavailable", "the server is being stopped; try again", retry=5)
            return task.result()
        finally:
            task.cancel()
            watch.cancel()

    async def apart(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, for a caller that may be cancelled at every wait: the work is cancelled once, and gives
        back in order what it holds. Raises `ApiError` when the server is stopped meanwhile."""
        task = self.begin(work)
        try:
            await asyncio.wait({task})
            if task.cancelled():
                raise ApiError("unavailable", "the server is being stopped; try again", retry=5)
            return task.result()
        finally:
            task.cancel()

    async def drain(self, seconds: float) -> None:
        """Wait for what is in work, and cancel what takes longer."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        rest = list(self._tasks)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


async def in_thread(work: Callable[[], T], stop: Callable[[], None] | None = None) -> T:
    """What `work` gives, in a thread. When this is cancelled, `stop` is called and the thread is waited for: what it
    works on is given back only then."""
    thread = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await asyncio.wait({thread})
        raise


async def _pump(source: AsyncGenerator[T], pieces: asyncio.Queue[T | _End]) -> None:
    end = _End()
    try:
        async with contextlib.aclosing(source):
            async for piece in source:
                await pieces.put(piece)
    except asyncio.CancelledError:
        with contextlib.suppress(asyncio.QueueFull):  # whoever waits for the next piece hears of it
            pieces.put_nowait(_End(ApiError("unavailable", "the server is being stopped; try again", retry=5)))
        raise
    except Exception as error:
        end = _End(error)
    await pieces.put(end)


async def _next(pieces: asyncio.Queue[T | _End], patience: float | None) -> T | _End | None:
    if patience is None or not pieces.empty():
        return await pieces.get()
    try:
        async with asyncio.timeout(patience):
            return await pieces.get()
    except TimeoutError:
        return None


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def merged(sources: list[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """What all of them give, as it comes. The first failure ends all."""
    pieces: asyncio.Queue[T | _End] = asyncio.Queue(AHEAD)
    tasks = [asyncio.create_task(_pump(source, pieces)) for source in sources]
    try:
        left = len(tasks)
        while left:
            piece = await pieces.get()
            if not isinstance(piece, _End):
                yield piece
                continue
            left -= 1
            if piece.error is not None:
                raise piece.error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
