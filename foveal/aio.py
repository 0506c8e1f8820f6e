"""An engine for asyncio.

No thread waits for a request. The engine's thread puts events into a mailbox of the event loop that the caller runs in,
and wakes it up once for all that came meanwhile. Any number of event loops may use one engine.

async with AsyncEngine(Engine.open("nano")) as engine:
    async for event in engine.stream("def main():"):
        print(event.text, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from foveal import cache
from foveal.batch import (
    GREEDY,
    Event,
    FinishReason,
    Generation,
    Kind,
    Priority,
    SamplingParams,
    TextStream,
    TokenConstraint,
)
from foveal.batch import Sampled as Sampled
from foveal.batch.generation import Collected
from foveal.batch.loop import EngineClosed as EngineClosed
from foveal.batch.tokens import Tokens
from foveal.cache.contract import AnyState
from foveal.engine import Engine, Prefixes, Prepared, Start
from foveal.engine.sequences import free_state

T = TypeVar("T")


class AsyncEngine:
    """`engine` for coroutines. Cancelling a task cancels what it was waiting for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """`Engine.close`."""
        await asyncio.to_thread(self.engine.close)

    async def call(self, function: Callable[[], T]) -> T:
        """`Engine.call`."""
        return await asyncio.wrap_future(self.engine.loop.post(function))

    async def stream(
        self, prompt: str | Tokens, params: SamplingParams = GREEDY, **options: Any
    ) -> AsyncGenerator[Event]:
        """Continue `prompt`, one event for each token; options and errors are those of `Engine.submit`.

        Closing the generator cancels. Leaving an ``async for`` does not close it at once: use `contextlib.aclosing`.
        """
        job = AsyncJob(self.engine, await self._prepared(prompt, params, options))
        async with contextlib.aclosing(job.events()) as events:
            async for event in events:
                yield event

    async def generate(self, prompt: str | Tokens, params: SamplingParams = GREEDY, **options: Any) -> Generation:
        """`stream`, to its end."""
        return await AsyncJob(self.engine, await self._prepared(prompt, params, options)).result()

    # ------------------------------------------------------------------ a sequence of one's own

    async def start(
        self, tokens: Tokens, *, base: cache.Sequence | None = None, prefixes: Prefixes | None = None
    ) -> Start:
        """`Engine.start`: a sequence of the caller's own that holds the beginning of `tokens`; `free` it when done."""
        return await asyncio.to_thread(self.engine.start, tokens, base=base, prefixes=prefixes)

    async def read(
        self,
        sequence: cache.Sequence,
        tokens: Tokens,
        *,
        priority: Priority = Priority.INTERACTIVE,
        tenant: str = "",
        deadline: float | None = None,
        targets: Tokens | None = None,
        params: SamplingParams = GREEDY,
        scored: list[Sampled] | None = None,
    ) -> FinishReason:
        """Run `tokens` into `sequence`, and keep a tail where they end, so that later ones may start from there.

        Says how it ended: `DONE`, or why not all was run. Cancelling the task ends it before its next step; what was
        run by then is in the sequence. `targets`: what follows each token is scored, with `params.logprobs`
        alternatives, and appended to `scored` as it is run. Raises `ParameterError`, `ContextLengthError`, and what the
        network raises.
        """
        if not len(tokens):
            return FinishReason.DONE
        self.engine.batch.check_length(sequence.length + len(tokens))
        request = self.engine.batch.request(
            tokens,
            params,
            state=sequence,
            kind=Kind.READ if targets is None else Kind.SCORE,
            priority=priority,
            tenant=tenant,
            deadline=deadline,
            targets=targets,
        )
        reason = FinishReason.CANCELLED
        async with contextlib.aclosing(AsyncJob(self.engine, Prepared(request, len(tokens), 0)).events()) as events:
            async for event in events:
                if scored is not None:
                    scored += event.scored
                reason = event.finish_reason or reason
        if reason is FinishReason.DONE:
            await self.call(sequence.keep_tail)
        return reason

    async def fork(self, sequence: cache.Sequence) -> cache.Sequence:
        """`Engine.fork` at the end of `sequence`."""
        return await self.call(lambda: self.engine.batch.admission.making_room(sequence.fork))

    def go_on(
        self,
        sequence: cache.Sequence,
        tokens: Tokens,
        params: SamplingParams = GREEDY,
        *,
        text: TextStream | None = None,
        constraint: TokenConstraint | None = None,
        priority: Priority = Priority.INTERACTIVE,
        tenant: str = "",
        deadline: float | None = None,
        trace: bool = False,
        whole_prompt: Tokens | None = None,
        give_back: Callable[[AnyState], None] | None = None,
    ) -> AsyncJob:
        """Continue `sequence` itself by `tokens` and what follows them; it stays the caller's. `text` and `constraint`
        are the request's own; `whole_prompt` as in `foveal.batch.BatchEngine.request`. Raises as `Engine.submit`.

        With `give_back` the sequence is the job's until it has ended, and may make room for others meanwhile. Before
        the last event the engine's thread calls it with the sequence as it is then, another object perhaps; not at all
        if the job ends while it makes room."""
        self.engine.batch.check_room(sequence.length + len(tokens), params)
        request = self.engine.batch.request(
            tokens,
            params,
            state=sequence,
            text=text,
            constraint=constraint,
            priority=priority,
            tenant=tenant,
            deadline=deadline,
            trace=trace,
            whole_prompt=whole_prompt,
            release=give_back,
        )
        return AsyncJob(self.engine, Prepared(request, len(tokens), 0))

    async def free(self, sequence: cache.Sequence) -> None:
        """`Engine.free`; a task that is cancelled meanwhile has freed it all the same."""
        try:
            freed = self.engine.loop.post(partial(self.engine.batch.release, sequence, free_state))
            await asyncio.shield(asyncio.wrap_future(freed))
        except EngineClosed:
            sequence.free()

    async def _prepared(self, prompt: str | Tokens, params: SamplingParams, options: dict[str, Any]) -> Prepared:
        if self.engine.prefixes is None:
            return self.engine.prepare(prompt, params, **options)
        # Looking for a stored beginning reads files, and may wait for the engine.
        return await asyncio.to_thread(self.engine.prepare, prompt, params, **options)


class AsyncJob:
    """One request in work, of a coroutine. Made in the event loop that takes its events."""

    def __init__(self, engine: Engine, prepared: Prepared) -> None:
        """Submits it. Raises `EngineClosed`."""
        self._engine, self._prepared = engine, prepared
        self._collected = Collected()
        self._ended = True  # nothing to cancel, should submitting fail
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        mailbox, events = _mailbox(asyncio.get_running_loop()), self._events
        prepared.request.sink = lambda event: mailbox.put(events, event)
        engine.loop.submit(prepared.request)
        self._ended = False

    def __del__(self) -> None:
        if not self._ended:
            self.cancel()

    def cancel(self) -> None:
        """End it before its next step; its last event says so."""
        self._engine.loop.cancel(self._prepared.request)

    async def events(self) -> AsyncGenerator[Event]:
        """The events not yet taken, to the last one. Closing the generator cancels the job, and waits until it has
        given back what it held. Raises what the request failed with."""
        try:
            while not self._ended:
                event = await self._next()
                if event.error is not None:
                    raise event.error
                yield event
        finally:
            await self._close()

    def waiting(self) -> list[Event]:
        """The events that have come and were not taken; takes them. They may end with the last one."""
        taken: list[Event] = []
        while not self._ended and not self._events.empty():
            event = self._events.get_nowait()
            self._collected.add(event)
            self._ended = event.finish_reason is not None
            taken.append(event)
        return taken

    async def result(self) -> Generation:
        """Wait for the end."""
        async with contextlib.aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self._collected.generation(self._prepared.prompt_tokens, self._prepared.reused_tokens)

    async def _close(self) -> None:
        if not self._ended:
            self.cancel()
        while not self._ended:
            await self._next()

    async def _next(self) -> Event:
        event = await self._events.get()
        self._collected.add(event)
        self._ended = event.finish_reason is not None
        return event


TOGETHER = 0.004
"""Seconds for which events are gathered once some have come: an event loop that is woken for each of a fast model's
tokens takes the time that the model needs. What comes after a longer pause is delivered at once."""


class _Mailbox:
    """Carries events of any number of jobs into one event loop, which is woken up once for all that have come."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._waiting: list[tuple[asyncio.Queue[Event], Event]] = []
        self._due = False
        """Whether a delivery comes anyway."""
        self._lock = threading.Lock()

    def put(self, events: asyncio.Queue[Event], event: Event) -> None:
        """Called by the engine's thread. An event loop that was closed meanwhile has nobody left to listen."""
        with self._lock:
            self._waiting.append((events, event))
            due, self._due = self._due, True
        loop = self._loop()
        if not due and loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            came, self._waiting = self._waiting, []
            self._due = bool(came)
        for events, event in came:
            events.put_nowait(event)
        if came:
            asyncio.get_running_loop().call_later(TOGETHER, self._deliver)


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()
_mailboxes_lock = threading.Lock()


def _mailbox(loop: asyncio.AbstractEventLoop) -> _Mailbox:
    with _mailboxes_lock:
        return _mailboxes.setdefault(loop, _Mailbox(loop))
