"""A reply parser as the text stream of a request: the engine stops at a stop string, the server takes the events."""

from __future__ import annotations

from collections import deque

from foveal.text.events import ContentDelta, ReplyEvent
from foveal.text.reply import ReplyParser


class ReplyStream:
    """A `TextStream` whose text is the reply's content. One thread pushes, another may take the events."""

    def __init__(self, parser: ReplyParser) -> None:
        self.parser = parser
        self._events: deque[ReplyEvent] = deque()

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found in the content."""
        return self.parser.stopped

    def push(self, token: int) -> str:
        """More content, if `token` makes any certain."""
        return self._kept(self.parser.push(token))

    def flush(self) -> str:
        """The content still held back."""
        return self._kept(self.parser.flush())

    def take(self) -> list[ReplyEvent]:
        """The events since the last call."""
        taken: list[ReplyEvent] = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def _kept(self, events: list[ReplyEvent]) -> str:
        self._events.extend(events)
        return "".join(event.text for event in events if isinstance(event, ContentDelta))
