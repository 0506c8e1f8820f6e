"""The one thread that owns the engine: between two steps it does what others ask, and each step's events go out.

There is one inbox, and all that enters it is done in the order in which it came, between steps. So whatever is called
here sees every sequence at rest, and a step needs no lock. The thread starts at the first use and waits in the inbox
when there is nothing to run. While it waits, a call that is short is done on the caller's own thread (`briefly`): going
to the other thread and back takes longer than a fork does.

The thread is a daemon only so that the interpreter, which waits for all others before it calls anybody, gets as far as
stopping it. It is stopped and joined like any other.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from foveal.batch.batch import BatchEngine
from foveal.batch.request import Event, FinishReason, Request
from foveal.errors import FovealError
from foveal.process import collecting
from foveal.process.logs import logger
from foveal.process.signals import held_back

_log = logger(__name__)

T = TypeVar("T")

_AGAIN = 0.02
"""Seconds until it is tried again to run what waits, when nothing can be run."""


class EngineClosed(FovealError, RuntimeError):
    """The engine was closed, its thread failed, or this is another process than the one that it runs in."""

    code = "cancelled"


class Loop:
    """The thread that steps `engine`. All methods may be called from any thread, its own included.

    Raises `EngineClosed` after `close`, and in a process that was forked from the one in which the thread runs.
    """

    def __init__(self, engine: BatchEngine) -> None:
        self._core = _Core(engine)
        # The thread knows the core only, so an engine that nobody holds any more goes, and its thread with it.
        weakref.finalize(self, self._core.stop).atexit = False

    def submit(self, request: Request) -> None:
        """Take `request` in; its events go to its `sink`, which the thread calls. Returns at once."""
        core = self._core
        core.post(_Command(lambda: core.engine.add(request), lambda error: _refuse(request, error)))

    def cancel(self, request: Request) -> None:
        """End `request` before the next step. Does nothing when it has ended. Never blocks, and may be called by a
        finaliser."""
        core = self._core
        core.put(_Command(lambda: core.engine.cancel(request), lambda error: None))

    def post(self, function: Callable[[], T]) -> Future[T]:
        """Have `function` called between two steps; returns at once.

        It holds everybody up for as long as it takes, and must not wait for another thread."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        self._core.post(_Command(run, future.set_exception))
        return future

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises, called between two steps."""
        if self.is_here:
            return function()
        return self.post(function).result()

    def briefly(self, function: Callable[[], T]) -> T:
        """`call`, of a function that takes microseconds and waits for nothing: while the loop rests it is done on the
        caller's thread, and a signal that comes meanwhile is heard after it."""
        core = self._core
        if core.rests and not core.is_here:
            with held_back():
                if core.borrow():
                    try:
                        return function()
                    finally:
                        core.give_back()
        return self.call(function)

    def finally_call(self, function: Callable[[], object]) -> None:
        """`briefly`, for giving something back: it works when the loop has ended, too. In the middle of a step, of what
        is done briefly, or of a garbage collection (a finaliser may come there) it is done after that."""
        core = self._core
        if collecting.here() or (core.is_here and (core.stepping or core.is_borrowed)):
            if not core.ended:  # else what is collected goes by itself
                core.put(_Command(function, lambda error: function()))
            return
        try:
            self.briefly(function)
        except EngineClosed:
            function()

    @property
    def is_here(self) -> bool:
        """Whether the caller's thread owns the engine: the loop's own, or one that does something briefly."""
        return self._core.is_here

    @property
    def stepping(self) -> bool:
        """Whether a step is being run just now."""
        return self._core.stepping

    def turn(self) -> None:
        """Do what was asked for, and a step; for a caller on the loop's own thread that waits for a request."""
        if self._core.stepping:
            raise RuntimeError("a step cannot wait for another one; do not wait for a job in a text stream or a sink")
        if self._core.stopping:
            raise EngineClosed("the engine is being closed")
        self._core.turn()

    def check(self) -> None:
        """Raises `EngineClosed` where no step will be run any more."""
        self._core.check()

    def close(self) -> None:
        """Cancel all requests and end the thread; returns when it has ended. Closing again does nothing."""
        self._core.stop()
        self._core.join()


@dataclass(frozen=True)
class _Command:
    """Something to do between two steps, and what to do instead when there will be none."""

    run: Callable[[], object]
    fail: Callable[[BaseException], object]


class _Core:
    """What the thread holds."""

    def __init__(self, engine: BatchEngine) -> None:
        self.engine = engine
        self.inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self.stepping = False
        self.rests = True
        """Whether nothing is in the inbox, in hand or to be run."""
        self.new_locks()
        self._borrower: int | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self.stopping = False
        self.ended: BaseException | None = None
        """Why no step is run any more, when none is."""
        self._idle = True
        _CORES.add(self)

    def new_locks(self) -> None:
        """Also in a process that was just forked, where nobody else is left to give them back."""
        self._gate = threading.RLock()  # held to put, never to step; a finaliser may come while it is held
        self._owned = threading.RLock()  # held by the thread that uses the engine just now

    def post(self, command: _Command) -> None:
        with self._gate:
            self.check()
            if self._thread is None:
                self._start()
            self.put(command)

    def put(self, command: _Command) -> None:
        """`post`, even where nothing is run any more."""
        with self._gate:
            self.rests = False
            self.inbox.put(command)

    def check(self) -> None:
        if self._thread is not None and self._process != os.getpid():
            raise EngineClosed("this process was forked from the one that the engine runs in; open an engine here")
        if self.ended is not None:
            raise EngineClosed(f"the engine does not run any more: {self.ended}") from self.ended

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="foveal-loop", daemon=True)
        with held_back():  # an interruption would leave a thread that nobody starts
            thread.start()
            self._thread, self._process = thread, os.getpid()
            _RUNNING.add(self)
        _log.debug("the engine's thread runs")

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread or self.is_borrowed

    # ------------------------------------------------------------------ who owns the engine while the thread rests

    def borrow(self) -> bool:
        """Have this thread own the engine until `give_back`, when it rests and nobody else does."""
        with self._gate:
            self.check()
            if self.stopping or not self.rests or not self._owned.acquire(blocking=False):
                return False
        self._borrower = threading.get_ident()
        return True

    def give_back(self) -> None:
        self._borrower = None
        self._owned.release()

    @property
    def is_borrowed(self) -> bool:
        """Whether this thread borrowed the engine."""
        return self._borrower == threading.get_ident()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        error: BaseException = EngineClosed("it was closed")
        try:
            while not self.stopping:
                self.turn()
        except BaseException as problem:
            error = problem
            _log.error("the engine's thread failed; all its jobs end with: %r", problem)
        self._end(error)

    def turn(self) -> None:
        """Do what is in the inbox, waiting for something when there is nothing to run, and take a step."""
        first = self._wait() if self._idle else None
        with self._owned:
            if first is not None:
                first.run()
            while not self.inbox.empty():
                self.inbox.get().run()
            if self.stopping:
                return
            self.stepping = True
            try:
                self._idle = not self.engine.step()
            finally:
                self.stepping = False

    def _wait(self) -> _Command | None:
        """What is asked for next. None when requests that wait for room are to be tried again: they can only be waiting
        for sequences of callers, who may free them unannounced."""
        waiting = self.engine.scheduler.busy
        with self._gate:
            self.rests = self.inbox.empty() and not waiting
        try:
            return self.inbox.get(timeout=_AGAIN if waiting else None)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """Have the thread end after its step. Never blocks."""
        self.stopping = True
        with self._gate:
            if self._thread is None:
                self.ended = self.ended or EngineClosed("it was closed")
            self.put(_Command(lambda: None, lambda error: None))

    def join(self) -> None:
        if self._thread is not None and not self.is_here and self._process == os.getpid():
            self._thread.join()

    def _end(self, error: BaseException) -> None:
        """Nobody waits for ever: requests and commands that are left end with what happened."""
        with self._owned:
            self.engine.abandon(None if isinstance(error, EngineClosed) else error)
        with self._gate:
            while not self.inbox.empty():
                self.inbox.get().fail(error)
            self.ended = error
        _RUNNING.discard(self)
        _log.debug("the engine's thread has ended")


def _refuse(request: Request, error: BaseException) -> None:
    """Tell a request that came too late."""
    if request.held is not None and request.release is not None:
        request.release(request.held)
    reason = FinishReason.CANCELLED if isinstance(error, EngineClosed) else FinishReason.ERROR
    request.sink(Event(request.id, finish_reason=reason, error=None if isinstance(error, EngineClosed) else error))


_RUNNING: set[_Core] = set()
"""Loops of this process whose thread runs."""
_CORES: weakref.WeakSet[_Core] = weakref.WeakSet()


def _forked() -> None:
    for core in list(_CORES):
        core.new_locks()


os.register_at_fork(after_in_child=_forked)


@atexit.register
def _stop_all() -> None:
    """At the interpreter's exit: jobs that are open end as cancelled."""
    cores = [core for core in _RUNNING if core._process == os.getpid()]
    for core in cores:
        core.stop()
    for core in cores:
        core.join()
