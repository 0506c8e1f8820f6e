"""A request as its caller holds it: what happens to it, in order, and a way to end it.

A job that nobody holds is cancelled, and so is one whose iterator is dropped or closed, or whose caller is interrupted.
A caller on the loop's own thread (a function given to `Loop.call`) takes the steps itself.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

from foveal.batch.generation import Collected, Generation
from foveal.batch.loop import Loop
from foveal.batch.request import Event, Request
from foveal.process import collecting


class _Events(queue.SimpleQueue[Event]):
    """What the loop's thread has sent of one request. It knows no job: one that nobody holds must be able to go."""

    complete = False
    """Whether the last event was sent; it is set before that can be taken."""

    def put(self, event: Event, block: bool = True, timeout: float | None = None) -> None:
        if event.finish_reason is not None:
            self.complete = True
        super().put(event, block, timeout)


class Job:
    """One request in work. For one caller, though several may wait for its `result`; `cancel` may be called from any
    thread.

    Iterate for its events, up to the last one; `result` waits for the end. A failure of the request is raised by both.
    In a ``with`` block, it is cancelled at the end of the block.
    """

    def __init__(self, loop: Loop, request: Request, *, prompt_tokens: int = 0, reused_tokens: int = 0) -> None:
        """Submits `request`. `prompt_tokens` and `reused_tokens` are what the result tells. Raises `EngineClosed`."""
        self.prompt_tokens, self.reused_tokens = prompt_tokens, reused_tokens
        self._ended = True  # until there is something to cancel
        self._loop, self._request = loop, request
        self._events = _Events()
        self._collected = Collected()
        request.sink = self._events.put
        self._ended = False  # before it is submitted: an interruption may come on the way back
        try:
            loop.submit(request)
        except Exception:
            self._ended = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended:
            self._loop.cancel(self._request)

    @property
    def id(self) -> int:
        """What its events carry as `request_id`."""
        return self._request.id

    @property
    def done(self) -> bool:
        """Whether its last event was taken."""
        return self._ended

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    def events(self) -> Generator[Event]:
        """The events not yet taken. Closing or dropping the iterator cancels the job."""
        try:
            while not self._ended:
                yield self._take(None)
        finally:
            self.close()

    def result(self, timeout: float | None = None) -> Generation:
        """Wait for the end. Raises `TimeoutError` after `timeout` seconds (the job goes on), and what failed."""
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._ended:
                self._take(None if end is None else max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"the job has not ended after {timeout} seconds") from None
        except BaseException:
            self.close()
            raise
        if self._collected.error is not None:
            raise self._collected.error
        return self._collected.generation(self.prompt_tokens, self.reused_tokens)

    def cancel(self) -> None:
        """End it before its next step, wherever it is; its last event says so. Does nothing when it has ended."""
        self._loop.cancel(self._request)

    def close(self) -> None:
        """Cancel it, and wait until it has ended and given back what it held."""
        if self._ended:
            return
        self.cancel()
        if collecting.here() or (self._loop.stepping and self._loop.is_here):
            return  # dropped in the middle of a step, or of anything else: it ends after that
        while not self._ended:
            if self._events.complete and self._events.empty():
                self._ended = True  # an interruption came between the queue and us, and took the last event with it
                return
            self._next(None)

    # ------------------------------------------------------------------ inside

    def _take(self, timeout: float | None) -> Event:
        event = self._next(timeout)
        if event.error is not None:
            raise event.error
        return event

    def _next(self, timeout: float | None) -> Event:
        if self._events.empty():
            self._loop.check()
        if self._loop.is_here:
            while self._events.empty():
                self._loop.turn()
        event = self._events.get(timeout=timeout)
        if not self._ended:
            self._collected.add(event)
            self._ended = event.finish_reason is not None
        if self._ended:
            self._events.put(event)  # another thread that waits as well shall hear it, too
        return event
