"""What the engine's thread does with each token of a reply: its text and its parts."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from foveal.text import Tokenizer, TokenStream
from foveal.text.events import CallStart, ReplyEvent
from foveal.text.reply import Reply, ReplyParser


class Part(enum.Enum):
    """What a token is part of."""

    REASONING = enum.auto()
    CONTENT = enum.auto()
    CALL = enum.auto()
    END = enum.auto()
    """The token that ended the reply, and is no part of it."""


class Voice(Protocol):
    """A `TextStream` that knows why it ended."""

    @property
    def stopped(self) -> bool: ...

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""
        ...

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class ChatVoice:
    """A chat's reply. One thread pushes, another takes the events and parts."""

    def __init__(self, parser: ReplyParser) -> None:
        self.parser = parser
        self._events: deque[ReplyEvent] = deque()
        self._parts: deque[Part] = deque()
        self._calling = False
        self._reasoned = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.parser.stopped

    @property
    def stopped_by(self) -> str | None:
        """See `Voice`."""
        return self.reply().stopped_by

    def push(self, token: int) -> str:
        """See `TextStream`. The text itself is in the events."""
        self._keep(self.parser.push(token))
        reasoned = self.parser.reasoning_tokens
        part = Part.REASONING if reasoned > self._reasoned else Part.CALL if self._calling else Part.CONTENT
        self._reasoned = reasoned
        self._parts.append(part)
        return ""

    def flush(self) -> str:
        """See `TextStream`."""
        self._keep(self.parser.flush())
        return ""

    def take(self) -> list[ReplyEvent]:
        """The events since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def part(self) -> Part:
        """What the next token that was pushed is part of."""
        return self._parts.popleft()

    def reply(self) -> Reply:
        """The whole reply, when it has ended."""
        return self.parser.reply()

    def _keep(self, events: list[ReplyEvent]) -> None:
        self._calling = self._calling or any(isinstance(event, CallStart) for event in events)
        self._events.extend(events)


class PlainVoice:
    """A completion's text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._stream = TokenStream(tokenizer, stop)

    @property
    def stopped(self) -> bool:
        """As `ChatVoice.stopped`."""
        return self._stream.stopped

    @property
    def stopped_by(self) -> str | None:
        """See `Voice`."""
        return self._stream.matched

    def push(self, token: int) -> str:
        """See `TextStream`."""
        return self._stream.push(token)

    def flush(self) -> str:
        """See `TextStream`."""
        return self._stream.flush()
