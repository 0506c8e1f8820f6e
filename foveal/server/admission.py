"""Who gets a place: nobody waits without end, and no queue grows without bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator

from foveal.server.auth import Key
from foveal.server.failures import ApiError


class Gate:
    """Places for requests in work: `running` in all, and for each key as many as it may have."""

    def __init__(self, running: int, waiting: int, patience: float) -> None:
        """`waiting`: how many may wait for a place at once.   patience: seconds that one waits."""
        self._places = asyncio.Semaphore(running)
        self._own: dict[str, asyncio.Semaphore] = {}
        self._most, self._patience = waiting, patience
        self.running = 0
        self.waiting = 0
        self.refused: defaultdict[str, int] = defaultdict(int)
        self.closed = False

    @contextlib.asynccontextmanager
    async def place(self, key: Key) -> AsyncGenerator[None]:
        """Hold a place. Raises `ApiError` (429 or 503, with when to come again) if there is none in time."""
        async with contextlib.AsyncExitStack() as stack:
            if key.concurrency is not None:
                own = self._own.setdefault(key.name, asyncio.Semaphore(key.concurrency))
                stack.push_async_callback(_released, await self._wait(own, "rate_limited", key))
            stack.push_async_callback(_released, await self._wait(self._places, "unavailable", key))
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1

    async def _wait(self, places: asyncio.Semaphore, code: str, key: Key) -> asyncio.Semaphore:
        if self.closed:
            raise ApiError("unavailable", "the server is being stopped; try again", retry=5)
        if places.locked() and self.waiting >= self._most:
            raise self._refusal(code, key, f"{self.waiting} requests are waiting already")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await places.acquire()
        except TimeoutError:
            raise self._refusal(code, key, f"no place was free within {self._patience:g} seconds") from None
        finally:
            self.waiting -= 1
        return places

    def _refusal(self, code: str, key: Key, why: str) -> ApiError:
        self.refused[code] += 1
        who = f"the key {key.name} has as many requests in work as it may" if code == "rate_limited" else "busy"
        return ApiError(code, f"{who}: {why}; try again later", retry=max(1.0, self._patience / 4))


async def _released(places: asyncio.Semaphore) -> None:
    places.release()
