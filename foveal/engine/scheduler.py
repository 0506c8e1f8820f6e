"""Who runs in the next step, and with how many tokens.

What is special here: a prompt is cut at ABSOLUTE positions only, the multiples of `chunk` counted from position 0 of
the sequence, and never because the budget of a step is used up. The last bits of a floating-point matrix product
depend on the number of rows (torch's fp32 linear on a CPU takes another kernel below four rows), so a cut that
depended on the load would let the load change the result. With fixed cuts a sequence's arithmetic is a function of
its tokens alone: greedy decoding is deterministic, and reading that was interrupted at a chunk ends in the same bits
as reading that was not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from foveal.engine.request import ParameterError, Request

PREFILL_CHUNK = 512
"""Tokens between two cuts of a prompt; two cache pages."""


def next_cut(position: int, remaining: int, chunk: int = PREFILL_CHUNK) -> int:
    """How many of `remaining` tokens the next forward pass takes when `position` tokens are already in the state."""
    return min(remaining, chunk - position % chunk)


@dataclass(frozen=True)
class Work:
    """One forward pass of one request: `tokens` are the first of its pending ones; `last` says they are all of them,
    so that the next token can be chosen after it."""

    request: Request
    tokens: tuple[int, ...]
    last: bool


class Scheduler:
    """First come, first served. A step runs one token of every sequence that is decoding, and pieces of prompts.

    `budget` is how many tokens a step should run. Decoding goes first; the first piece of a prompt runs even when it
    does not fit, so that neither side can starve the other; further pieces wait for room.
    `max_running` bounds how many sequences are in work at once; others wait in the order they came.
    """

    def __init__(self, *, chunk: int = PREFILL_CHUNK, budget: int = 2048, max_running: int = 64) -> None:
        for name, value in (("chunk", chunk), ("budget", budget), ("max_running", max_running)):
            if value < 1:
                raise ParameterError(f"scheduler setting {name!r} is {value}; it must be an integer >= 1")
        self.chunk = chunk
        self.budget = budget
        self.max_running = max_running
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    @property
    def busy(self) -> bool:
        """Whether any request is left."""
        return bool(self._waiting or self._running)

    def requests(self) -> list[Request]:
        """All requests that have not ended, running ones first."""
        return [*self._running, *self._waiting]

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request that ended. Does nothing when it is not here."""
        if request in self._running:
            self._running.remove(request)
        elif request in self._waiting:
            self._waiting.remove(request)

    def schedule(self) -> list[Work]:
        """The pieces of the next step; empty only when no request is left."""
        while self._waiting and len(self._running) < self.max_running:
            self._running.append(self._waiting.popleft())
        decoding = [request for request in self._running if request.decoding]
        turn = decoding[: self.budget]
        if len(turn) < len(decoding):  # a small budget serves them in turn
            self._running = [request for request in self._running if request not in turn] + turn
        prompts = [request for request in self._running if not request.decoding]
        return [self._piece(request) for request in turn] + self._prompt_pieces(prompts, self.budget - len(turn))

    def _prompt_pieces(self, prompts: list[Request], room: int) -> list[Work]:
        pieces: list[Work] = []
        for request in prompts:
            piece = self._piece(request)
            room -= len(piece.tokens)
            if room < 0 and pieces:
                break  # nobody overtakes: what is behind waits as well
            pieces.append(piece)
        return pieces

    def _piece(self, request: Request) -> Work:
        size = next_cut(request.state.length, len(request.pending), self.chunk)
        return Work(request, tuple(request.pending[:size]), last=size == len(request.pending))
