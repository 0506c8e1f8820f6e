"""Questions put to a memory: places found in it, read again by a chat model that is served here."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from foveal.engine import SHIPPED
from foveal.memory import Memory
from foveal.memory.asking.answering import ANSWER_TOKENS, DEFAULT_ZOOM, PLACE_TOKENS
from foveal.memory.asking.chat_model import SUGGESTED, ChatModel
from foveal.memory.asking.told import told
from foveal.server.auth import Key
from foveal.server.failures import ApiError
from foveal.server.registry import Model, Registry, Shelf
from foveal.server.service import Service

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question and what goes with it. `with_`: the model that words the answer."""

    question: str
    with_: str | None = None
    zoom: int = DEFAULT_ZOOM
    max_tokens: int = ANSWER_TOKENS
    place_tokens: int = PLACE_TOKENS


def chat_model(registry: Registry, key: Key, own: Model, name: str | None) -> Model:
    """The model called `name`; by default the memory's own (`own`), or another one where that was not made to chat.
    Raises `ApiError`."""
    return registry.find(name, key) if name is not None else _default(registry, key, own)


def _default(registry: Registry, key: Key, own: Model) -> Model:
    served = [own, *(model for each in registry.names(key) if (model := registry.find(each, key)) is not own)]
    for model in served:
        if model.engine.engine.name not in SHIPPED and model.encoding is not None:
            return model
    raise ApiError(
        "invalid_request",
        f"no model that is served here can word an answer; `foveal convert {SUGGESTED}` gets one, which is then served "
        f"beside the others: foveal serve {own.name} {SUGGESTED}",
        param="with",
    )


async def answering(service: Service, key: Key, shelf: Shelf, name: str, asked: Asked) -> AsyncGenerator[Json]:
    """Events of an answer: its places, its pieces, and in the end all that is known of it. Closing it ends the work."""
    model = chat_model(service.registry, key, shelf.model, asked.with_)
    chat = ChatModel.fitting(model.engine.engine, model.chats())
    async with service.gate.place(key), shelf.fork(name) as memory:
        work = _Answering(memory, chat, asked)
        thread = asyncio.create_task(asyncio.to_thread(work.run))
        try:
            while (event := await work.events.get()) is not None:
                yield {"memory": name, "with": model.name, **event} if event["type"] == "done" else event
            await thread
        finally:
            work.stop.set()
            await asyncio.wait({thread})


class _Answering:
    """One answer, in a thread of its own."""

    def __init__(self, memory: Memory, chat: ChatModel, asked: Asked) -> None:
        self._memory, self._chat, self._asked = memory, chat, asked
        self._loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Json | None] = asyncio.Queue()
        self.stop = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        finally:
            self._tell(None)

    def _run(self) -> None:
        asked = self._asked
        stream = self._memory.ask_stream(
            asked.question,
            with_=self._chat,
            zoom=asked.zoom,
            max_tokens=asked.max_tokens,
            place_tokens=asked.place_tokens,
        )
        self._tell({"type": "places", "places": [str(place) for place in stream.places]})
        with contextlib.closing(stream):
            for piece in stream:
                if self.stop.is_set():
                    return
                self._tell({"type": "delta", "text": piece})
        self._tell({"type": "done", **told(stream.result)})

    def _tell(self, event: Json | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


async def answered(service: Service, key: Key, shelf: Shelf, name: str, asked: Asked) -> Json:
    """The answer in one piece."""
    last: Json = {}
    async with contextlib.aclosing(answering(service, key, shelf, name, asked)) as events:
        async for event in events:
            last = event
    last.pop("type", None)
    return last
