"""Who may hold memory: what does not fit waits, and under pressure the least urgent sequences make room.

Nothing is reserved for tokens that may never come. A request starts when its prompt fits beside what is running; when
sequences have grown until a step lacks pages, the least urgent is parked (`foveal.batch.room`), and comes back before
anything newer starts. The most urgent one is never parked, so something always goes on. What is only kept for later
requests (`Admission.spare`) goes before any of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from foveal.batch.request import Request
from foveal.batch.room import Room
from foveal.batch.scheduler import Scheduler, Work
from foveal.cache import CacheFull
from foveal.errors import ParameterError
from foveal.process.logs import logger

_log = logger(__name__)

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that a request which made room waits to come back while no other runs, before it fails: sequences outside of
any job hold the rest, and nobody knows for how long."""


class Admission:
    """Starts and parks the requests of `scheduler`. `begin` makes a request's state, or raises; `fail` ends one."""

    def __init__(
        self,
        scheduler: Scheduler,
        begin: Callable[[Request], None],
        fail: Callable[[Request, Exception], None],
        room: Room | None = None,
    ) -> None:
        self.room = room
        self.patience = PATIENCE
        self.spare: Callable[[], bool] = _nothing
        """Gives up some of what nobody runs on, between two steps; says whether there was anything."""
        self.parked = 0
        """How often a request made room."""
        self._scheduler, self._begin, self._fail = scheduler, begin, fail

    def check(self, request: Request) -> None:
        """Raises `CacheFull` for a request that could not even run alone, `ParameterError` for one whose state has its
        memory elsewhere: another thread may be at it."""
        if self.room is not None and not self.room.has(request.state):
            raise ParameterError("the sequence belongs to another engine; give one that this engine made")
        if self.room is None or self.room.limit is None:
            return
        pages = self.room.pages(request.state, request.most)
        if pages > self.room.limit:
            raise CacheFull(
                f"a sequence of {request.state.length + request.most:,} tokens (its prompt and max_tokens) takes "
                f"{pages:,} pages; the cache has {self.room.limit:,} in all: ask for fewer tokens, or give it more"
            )

    # ------------------------------------------------------------------ starting

    def admit(self) -> None:
        """Start who waits, the most urgent first, until one does not fit."""
        while (request := self._scheduler.next_waiting()) is not None:
            if not self._fits(request) and not self._displaces(request):
                if self._scheduler.running or self._waits(request):
                    return
                self._fail(request, self._no_room(request))  # nobody's end would make room for it
            elif not self._start(request):
                return

    def _start(self, request: Request) -> bool:
        try:
            if request.parked is not None:
                request.held, request.parked = request.parked.restore(), None
            elif request.held is None:
                self._begin(request)
        except CacheFull as error:
            if not self._scheduler.running:
                self._fail(request, error)
            return False
        except Exception as error:
            self._fail(request, error)
            return True
        self._scheduler.start(request)
        return True

    def _waits(self, request: Request) -> bool:
        """Whether a request for which there is no room, though no other runs, is still waiting."""
        return request.begun and self._scheduler.clock() - request.served < self.patience

    def _needed(self, request: Request) -> int:
        """Pages to start with: those of the past, when it was parked, and of the prompt."""
        assert self.room is not None
        if request.parked is not None:
            return request.parked.pages
        return 1 if request.held is None else self.room.needed(request.held, request.waiting)

    def _fits(self, request: Request) -> bool:
        """Beside the prompts that are being read, and a page more for each sequence that runs."""
        if self.room is None or self.room.free is None:
            return True
        running = self._scheduler.running
        reserved = sum(1 + (0 if r.decoding else self.room.needed(r.state, r.waiting)) for r in running)
        return self._needed(request) + reserved <= self.room.free

    def _displaces(self, request: Request) -> bool:
        """Give up what is spare, park who waits, and running requests of lower priority, for it; whether it fits
        then."""
        while self.spare():
            if self._fits(request):
                return True
        for victim in self._scheduler.least_urgent():
            waits = victim not in self._scheduler.running
            if victim is request or (victim.priority <= request.priority and not waits):
                continue
            if self._park(victim) and self._fits(request):
                return True
        return False

    # ------------------------------------------------------------------ making room

    def fitting(self, plan: list[Work]) -> list[Work]:
        """As much of `plan` as there are pages for. What is spare is given up, then the least urgent are parked; those
        that cannot be wait."""
        if self.room is None or self.room.free is None:
            return plan
        while self._lacking(plan) > 0:
            if not self.spare():
                break
        else:
            return plan
        for victim in self._scheduler.least_urgent()[:-1]:
            if self._lacking(plan) <= 0:
                break
            if self._park(victim) or len(plan) > 1:
                plan = [work for work in plan if work.request is not victim]
        return plan

    def _lacking(self, plan: list[Work]) -> int:
        assert self.room is not None and self.room.free is not None
        return sum(self.room.needed(work.request.state, work.count) for work in plan) - self.room.free

    def making_room(self, function: Callable[[], T]) -> T:
        """What `function` returns; while it raises `CacheFull` what is spare is given up, and then requests are parked,
        as far as there are any."""
        while True:
            try:
                return function()
            except CacheFull:
                if not self.spare() and not any(self._park(victim) for victim in self._scheduler.least_urgent()):
                    raise

    def _park(self, request: Request) -> bool:
        """Have a request make room, if it can."""
        if self.room is None or request.release is None:
            return False
        try:
            request.parked = self.room.park(request.state)
        except CacheFull:
            return False
        request.held = None
        self.parked += 1
        self._scheduler.put_back(request)
        _log.info("request %d made room: parked, %d pages to come back", request.id, request.parked.pages)
        return True

    def _no_room(self, request: Request) -> CacheFull:
        assert self.room is not None
        return CacheFull(
            f"the cache is full: {self._needed(request)} page(s) are wanted, and {self.room.free} of "
            f"{self.room.limit} are free; the others are held by sequences outside of any job: free some, or give the "
            "cache more"
        )


def _nothing() -> bool:
    return False
