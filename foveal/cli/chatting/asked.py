"""A message that is asked of the memory first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from foveal.cli.chatting.talk import Answer, Outcome, Talk
from foveal.cli.output import UserError, note
from foveal.text.events import ContentDelta, ReplyEvent

if TYPE_CHECKING:
    from foveal.memory import Answer as PlacesAnswer
    from foveal.memory import Found


@dataclass(frozen=True)
class Zoom:
    """How the memory is asked. places: how many the model is shown.   with_: the model that words the answer (None: the
    conversation's own, or another where that was not made to chat).   max_tokens: of an answer (None: the usual).
    every: whether every message is asked; None: it is where there is a memory, and somebody to word the answer."""

    places: int
    with_: str | None = None
    max_tokens: int | None = None
    every: bool | None = None


class CannotAsk(UserError):
    """Nobody here can be asked; the message says why."""


def go_without(talk: Talk, zoom: Zoom, error: CannotAsk) -> None:
    """From now on messages are answered without a look at the memory, which is told; or, where the person wants the
    look, the `error` is raised."""
    if zoom.every:
        raise error
    talk.zooms = False
    note(f"foveal: messages are answered without a look at the memory: {error}")


class TooLongToAsk(UserError):
    """A message that leaves no room for a place."""


class Turn(Protocol):
    """A question in work: `foveal.memory.asked_turn.AskedTurn`, or the same at a server."""

    @property
    def places(self) -> tuple[Found, ...]: ...

    def __iter__(self) -> Iterator[str]: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...

    @property
    def result(self) -> PlacesAnswer: ...


class Asked:
    """An `Answer`: the answer from places; or, where there are none, whatever `otherwise` gives."""

    def __init__(
        self,
        begin: Callable[[], Turn],
        otherwise: Callable[[], Answer] | None,
        cannot: Callable[[CannotAsk], None] | None,
    ) -> None:
        """`begin` and the turn's places may raise `CannotAsk`, of which `cannot` is told (None: it is raised), and
        `TooLongToAsk`; both are as if there were no places."""
        self._begin, self._otherwise, self._cannot = begin, otherwise, cannot
        self._turn: Turn | None = None
        self._other: Answer | None = None
        self._stopped = False
        self._began, self._first, self._whole = time.perf_counter(), 0.0, 0.0

    def __iter__(self) -> Iterator[ReplyEvent]:
        if self._otherwise is not None and not self._fits(self._cannot):
            if not self._stopped:
                yield from self._said(self._otherwise())
            return
        for piece in self._opened():
            self._first = self._first or time.perf_counter() - self._began
            yield ContentDelta(piece)
        self._whole = time.perf_counter() - self._began

    def _said(self, other: Answer) -> Iterator[ReplyEvent]:
        self._other = other
        if self._stopped:  # while it was begun
            other.stop()
        yield from other

    def _opened(self) -> Turn:
        if self._turn is None:
            self._turn = self._begin()
            if self._stopped:
                self._turn.stop()
        return self._turn

    def _fits(self, cannot: Callable[[CannotAsk], None] | None) -> bool:
        """Whether there are places."""
        try:
            return bool(self._opened().places)
        except TooLongToAsk:
            return False
        except CannotAsk as error:
            if cannot is None:
                raise
            cannot(error)
            return False

    def stop(self) -> None:
        """See `Answer`."""
        self._stopped = True
        for each in (self._turn, self._other):
            if each is not None:
                each.stop()

    def close(self) -> None:
        """See `Answer`."""
        for each in (self._turn, self._other):
            if each is not None:
                each.close()

    @property
    def outcome(self) -> Outcome:
        """See `Answer`."""
        if self._other is not None:
            return self._other.outcome
        if self._turn is None or (self._stopped and not self._whole):
            return Outcome(finish="")
        return Outcome.of_asked(self._turn.result, stopped=self._stopped, first=self._first, whole=self._whole)
