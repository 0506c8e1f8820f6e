"""Who runs in the next step, and with how many tokens.

A step's budget is time. Every sequence that decodes gets its token, and reading gets what is left of the budget, by
what a token was found to cost, and by how much steps were later than that (`foveal.batch.costs`). When nothing decodes,
whole chunks are read.

A prompt always ends a piece at the ABSOLUTE multiples of `chunk`, counted from position 0 of the sequence. Between
these it is cut only where the backend gives the same bits for every cut (`grain` 1). Elsewhere the last bits of a
floating-point matrix product depend on the number of rows (torch's fp32 linear on a CPU takes another kernel below
four rows), so a cut that depended on the load would let the load change the result. So a sequence's arithmetic is a
function of its tokens alone: greedy decoding is deterministic, and reading that was interrupted ends in the same bits
as reading that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from foveal.batch.costs import Costs
from foveal.batch.request import Kind, Priority, Request
from foveal.batch.tenants import Tenants
from foveal.errors import ParameterError

PREFILL_CHUNK = 512
"""Tokens between two cuts of a prompt; two cache pages."""
LEAST_BUDGET = 0.05
"""Seconds of a step, at least, where the operator sets nothing."""
PATIENCE = 2.0
"""Seconds after which what was not served goes before what is more urgent, once."""
_CHUNKS = 4
"""Chunks that a step reads, at most, when nothing decodes."""
_PROBE = 16
"""Tokens of a piece whose cost is not known yet; long pieces that are cut are multiples of it."""
_ROUNDED = 64
"""Tokens from which on a piece is long."""
_MARGIN = 0.9
"""Share of the budget that is planned, at most: a step may take a little longer than expected."""
_LATEST = 1.1
"""Times the budget that one step in a hundred may take longer than."""
_READING = 0.1
"""Share of the budget that reading gets when decoding needs all of it."""


def next_cut(position: int, remaining: int, chunk: int = PREFILL_CHUNK) -> int:
    """How many of `remaining` tokens there are before the next fixed cut when `position` tokens are in the state."""
    return min(remaining, chunk - position % chunk)


@dataclass(frozen=True)
class Work:
    """One piece of one request: the first `count` of its waiting tokens; `last` says they are all of them, so that the
    next token can be chosen after it."""

    request: Request
    count: int
    last: bool

    @property
    def reads(self) -> bool:
        """Whether it is a piece of a prompt."""
        return not self.request.decoding

    @property
    def chooses(self) -> bool:
        """Whether a token is chosen after it."""
        return self.last and self.request.kind is Kind.GENERATE


class Scheduler:
    """Strict priorities, fair between tenants, first come first served among equals. A prompt that ends within a chunk
    goes before longer ones of its tenant, and what waited for `PATIENCE` seconds counts as urgent.

    `step_budget`: seconds that a step shall take when something decodes (default: twice what a decoding token takes by
    itself, at least `LEAST_BUDGET`). `max_running` bounds how many sequences are in work at once; others wait.
    Requests for one state run one after the other, in the order in which they came. `clock` gives seconds; the costs
    are learned with it, and deadlines are times of it.
    """

    def __init__(
        self,
        *,
        chunk: int = PREFILL_CHUNK,
        max_running: int = 64,
        step_budget: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, value in (("chunk", chunk), ("max_running", max_running)):
            if value < 1:
                raise ParameterError(f"scheduler setting {name!r} is {value}; it must be an integer >= 1")
        if step_budget is not None and not step_budget > 0:
            raise ParameterError(f"scheduler setting 'step_budget' is {step_budget}; it must be seconds > 0")
        self.chunk = chunk
        self.grain = chunk
        """A prompt may be cut at every multiple of so many tokens; the engine sets it to 1 where that is so."""
        self.max_running = max_running
        self.step_budget = step_budget
        self.clock = clock
        self.costs = Costs()
        self._tenants = Tenants()
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._timed: set[Request] = set()

    @property
    def busy(self) -> bool:
        """Whether any request is left."""
        return bool(self._waiting or self._running)

    def requests(self) -> list[Request]:
        """All requests that have not ended, running ones first."""
        return [*self._running, *self._waiting]

    def add(self, request: Request) -> None:
        request.served = self.clock()
        self._tenants.came(request.tenant, (other.tenant for other in self.requests()))
        self._waiting.append(request)
        if request.deadline is not None:
            self._timed.add(request)

    def remove(self, request: Request) -> None:
        """Forget a request that ended. Does nothing when it is not here."""
        self._timed.discard(request)
        for requests in (self._running, self._waiting):
            if request in requests:
                requests.remove(request)

    # ------------------------------------------------------------------ who runs

    @property
    def running(self) -> list[Request]:
        return self._running

    def next_waiting(self) -> Request | None:
        """The most urgent of those that wait, as far as `max_running` allows more, one at a time for each state.
        Background work does not keep interactive requests out."""
        if not self._waiting:
            return None
        held = {id(request.held) for request in self._running}
        for request in self._ranked(self._waiting):
            ahead = sum(other.priority <= request.priority for other in self._running)
            if ahead < self.max_running and id(request.held) not in held:
                return request
        return None

    def start(self, request: Request) -> None:
        self._waiting.remove(request)
        self._running.append(request)

    def put_back(self, request: Request) -> None:
        """Have a request wait again; what has begun starts before what is new."""
        if request in self._running:
            self._running.remove(request)
            self._waiting.append(request)

    def least_urgent(self) -> list[Request]:
        """The requests that hold a state, the one to make room first in front: who waits before who runs, background
        before interactive, new before old."""
        holding = [request for request in self._waiting if request.held is not None]
        running = sorted(self._running, key=lambda request: (-request.priority, -request.id))
        return sorted(holding, key=lambda request: (-request.priority, -request.id)) + running

    def expired(self) -> list[Request]:
        """Requests whose deadline has passed."""
        if not self._timed:
            return []
        now = self.clock()
        return [request for request in self._timed if request.deadline is not None and request.deadline <= now]

    def budget(self, depth: int = 0) -> float:
        """Seconds that a step shall take when a sequence of `depth` tokens decodes."""
        return self.step_budget or max(LEAST_BUDGET, 2 * self.costs.of_decoding([depth]))

    def _planned(self, budget: float) -> float:
        """How much of the budget a step is expected to take: less on a machine whose steps are often late."""
        return budget * min(_MARGIN, _LATEST / self.costs.late)

    # ------------------------------------------------------------------ a step

    def schedule(self) -> list[Work]:
        """The pieces of the next step; empty only when no request runs."""
        decoding = [Work(request, 1, last=True) for request in self._running if request.decoding]
        prompts = [request for request in self._running if not request.decoding]
        if not prompts or not decoding:
            return decoding or self._freely(self._ranked(prompts))
        urgent = self._urgent(decoding)
        depths = [work.request.state.length for work in urgent]
        budget = self.budget(max(depths))
        room = max(self._planned(budget) - self.costs.of_decoding(depths), _READING * budget)
        return urgent + self._within(self._ranked(prompts), room)

    def _ranked(self, requests: Iterable[Request]) -> list[Request]:
        """The most urgent first."""
        now = self.clock()

        def rank(request: Request) -> tuple[int, bool, float, bool, int]:
            aged = now - request.served >= PATIENCE
            level = Priority.INTERACTIVE if aged else request.priority
            served = self._tenants.served(request.tenant)
            return level, not request.begun, served, request.waiting > self.chunk and not aged, request.id

        return sorted(requests, key=rank)

    def _urgent(self, decoding: list[Work]) -> list[Work]:
        """The sequences that decode in a step that also reads: the interactive ones, and of the others as many as the
        budget has room for."""
        now = self.clock()
        first = [work for work in decoding if work.request.priority is Priority.INTERACTIVE]
        for work in decoding:
            if work.request.priority is Priority.INTERACTIVE:
                continue
            depths = [other.request.state.length for other in (*first, work)]
            fits = self.costs.of_decoding(depths) <= self._planned(self.budget(max(depths)))
            if fits or now - work.request.served >= PATIENCE:
                first.append(work)
        return first

    def _freely(self, prompts: list[Request]) -> list[Work]:
        """Whole chunks: the first, and more of the same priority as long as they are few tokens together."""
        pieces: list[Work] = []
        room = _CHUNKS * self.chunk
        for request in prompts:
            if request.priority is not prompts[0].priority:
                break
            count = next_cut(request.state.length, request.waiting, self.chunk)
            if count <= room:
                pieces.append(_work(request, count))
                room -= count
        return pieces

    def _within(self, prompts: list[Request], seconds: float) -> list[Work]:
        """Pieces that are expected to take `seconds` together. The first is read in any case, at least a little of it,
        so that decoding cannot keep it waiting for ever."""
        pieces: list[Work] = []
        for request in prompts:
            whole = next_cut(request.state.length, request.waiting, self.chunk)
            count = self._fitting(request, whole, seconds)
            if not count and not pieces:
                count = whole if self._grain(request) > 1 else 1
            if count:
                pieces.append(_work(request, count))
                seconds -= self.costs.of_reading(request.state.length, count, scored=_scores(request))
            if count < whole or not self._knows(request):
                break
        return pieces

    def _fitting(self, request: Request, whole: int, seconds: float) -> int:
        """How many of the `whole` tokens up to the next cut fit into `seconds`, of those that may be run at once."""
        if not self._knows(request):
            return min(whole, _PROBE) if self._grain(request) == 1 else whole
        count = self.costs.tokens_within(request.state.length, seconds, whole, scored=_scores(request))
        if count == whole or self._grain(request) == 1:
            return count if count == whole or count < _ROUNDED else count - count % _PROBE
        return 0

    def _knows(self, request: Request) -> bool:
        """Whether it is known what reading it takes."""
        return self.costs.knows_scoring if _scores(request) else self.costs.knows_reading

    def _grain(self, request: Request) -> int:
        """Where this request may be cut. A state that keeps tails does so where a piece ends, so between its tails."""
        every = getattr(request.state, "tail_every", None)
        return self.chunk if every is not None and every % self.chunk else self.grain

    def ran(self, plan: list[Work], depths: list[int], seconds: float) -> None:
        """The plan's pieces, behind so many tokens each, took `seconds` together."""
        now = self.clock()
        pieces = list(zip(plan, depths, strict=True))
        decoding = [depth for work, depth in pieces if not work.reads]
        reading = [(depth, work.count) for work, depth in pieces if work.reads]
        scored = sum(work.count for work in plan if _scores(work.request))
        self.costs.learn(decoding, reading, seconds, scored)
        for work in plan:
            work.request.served = now
        if self._tenants.several:
            self._charge(pieces, seconds)

    def _charge(self, pieces: list[tuple[Work, int]], seconds: float) -> None:
        """Share the time out among the tenants, by what their pieces are expected to cost."""
        expected = [
            self.costs.of_reading(depth, work.count, scored=_scores(work.request))
            if work.reads
            else self.costs.of_decoding([depth])
            for work, depth in pieces
        ]
        whole = sum(expected)
        for (work, _), cost in zip(pieces, expected, strict=True):
            self._tenants.charge(work.request.tenant, seconds * (cost / whole if whole else 1 / len(pieces)))


def _work(request: Request, count: int) -> Work:
    return Work(request, count, last=count == request.waiting)


def _scores(request: Request) -> bool:
    return request.targets is not None
