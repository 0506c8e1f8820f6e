"""Waiting for another head of a memory: one task looks for all who wait."""

from __future__ import annotations

import asyncio
from collections import Counter

from foveal.errors import FovealError
from foveal.memory import Store
from foveal.memory.keeping import head_of_memory

LOOK_EVERY = 0.05


class Heads:
    """Of the memories of one store. For one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.waiting: Counter[tuple[str, str]] = Counter()
        """By name of a memory and its head: how many wait for another head."""

    def __len__(self) -> int:
        return len(self._looks)

    async def now(self, name: str) -> str:
        """The head of a memory. Raises `MemoryNotFound`."""
        return await asyncio.to_thread(head_of_memory, name, self._store)

    async def changed(self, name: str, head: str, seconds: float) -> bool:
        """Wait `seconds` at most for memory `name` to have another head than `head`. Returns whether it has, or cannot
        be looked at: the caller's next look says what is wrong."""
        place = (name, head)
        if place not in self._looks:
            self._looks[place] = asyncio.create_task(self._look(name, head))
        look = self._looks[place]
        self.waiting[place] += 1
        try:
            await asyncio.wait({look}, timeout=seconds)
            return look.done()
        finally:
            self.waiting[place] -= 1
            if not self.waiting[place]:
                del self.waiting[place]
                look.cancel()
            if (look.done() or place not in self.waiting) and self._looks.get(place) is look:
                del self._looks[place]

    async def _look(self, name: str, head: str) -> None:
        try:
            while await self.now(name) == head:
                await asyncio.sleep(LOOK_EVERY)
        except FovealError:
            return
