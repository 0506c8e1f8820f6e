"""A question in a conversation, answered from places, as one turn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from foveal.memory.asking.answering import Answer, AnswerStream
from foveal.memory.asking.places import Found


class AskedTurn:
    """Pieces of the answer as they come; iterate once. The conversation has question and answer as a turn when the
    iteration has ended: the places that were shown are no part of it, they stand in the memory already.

    Where no place fitted, or it was stopped before anything was told, the conversation is as it was, and `kept` is
    False. So it is when this is dropped or closed early.
    """

    def __init__(self, stream: AnswerStream, keep: Callable[[str], None], *, bare: bool) -> None:
        """`keep` adds an answer to the conversation.   bare: the model is shown no places."""
        self._stream, self._keep, self._bare = stream, keep, bare
        self._pieces = self._run()
        self.kept = False

    @property
    def places(self) -> tuple[Found, ...]:
        """What the model is shown. They are found now, if they were not yet."""
        return self._stream.places

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def stop(self) -> None:
        """End the answer as soon as can be; what was told stays. Never waits: a signal's handler may call it."""
        self._stream.stop()

    def close(self) -> None:
        """Give the turn up."""
        self._pieces.close()
        self._stream.close()

    @property
    def result(self) -> Answer:
        """Raises `ParameterError` while the answer is not whole."""
        return self._stream.result

    def _run(self) -> Generator[str, None, None]:
        yield from self._stream
        answer = self._stream.result
        if (answer.found or self._bare) and (answer.text or not self._stream.stopped):
            self._keep(answer.text)
            self.kept = True
