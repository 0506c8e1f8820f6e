"""A question to a memory of a server (``POST /v1/memories/NAME/ask``), as a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from foveal.cli.chatting.asked import CannotAsk, TooLongToAsk
from foveal.cli.output import UserError
from foveal.cli.server import Json, Refused, Server
from foveal.memory.asking.told import untold

if TYPE_CHECKING:
    from foveal.memory import Answer, Found


class RemoteTurn:
    """See `foveal.cli.chatting.asked.Turn`. `keep` is told of the answer when it is a turn of the conversation."""

    def __init__(self, server: Server, memory: str, body: Json, keep: Callable[[str], None]) -> None:
        """body: what is asked, and how."""
        self._question, self._bare, self._keep = str(body["question"]), body["zoom"] == 0, keep
        self._text: list[str] = []
        self._answer: Answer | None = None
        self._first: Json | None = None
        self._stream = server.stream(f"/v1/memories/{quote(memory, safe='')}/ask", body | {"stream": True})
        self._events = iter(self._stream)

    @property
    def places(self) -> tuple[Found, ...]:
        """Raises `UserError`. Their lines and texts come when the answer has ended."""
        from foveal.memory import Found

        if self._first is None:
            self._first = self._next("places")
        named = self._first.get("places", ())
        if not isinstance(named, list | tuple):
            raise _strange(self._first)
        return tuple(Found(str(each), 0, 0, "", 0.0) for each in named)

    def __iter__(self) -> Iterator[str]:
        fits = bool(self.places) or self._bare
        while (event := self._next("delta", "done")).get("type") == "delta":
            if not isinstance(text := event.get("text"), str):
                raise _strange(event)
            self._text.append(text)
            yield text
        self._answer = self._result_of(event)
        if fits and (self._answer.text or not self._stream.stopped):
            self._keep(self._answer.text)

    def _next(self, *kinds: str) -> Json:
        """The next event, of one of these types; an empty one when it was stopped."""
        try:
            event = next(self._events, None)
        except Refused as error:
            raise _told(error) from error
        if event is None:
            if self._stream.stopped:
                return {}
            raise UserError("the server broke the answer off")
        if not isinstance(event, dict) or event.get("type") not in kinds:
            raise _strange(event)
        return event

    def _result_of(self, event: Json) -> Answer:
        from foveal.memory import Answer

        if not event:  # stopped: what places there were is told with the end only
            return Answer(self._question, "".join(self._text).strip(), (), (), ())
        try:
            return untold(event)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _strange(event) from error

    def stop(self) -> None:
        """See `Turn`."""
        self._stream.stop()

    def close(self) -> None:
        """See `Turn`."""
        self._stream.close()

    @property
    def result(self) -> Answer:
        """See `Turn`."""
        assert self._answer is not None
        return self._answer


def _strange(event: Any) -> UserError:
    return UserError(f"the server sent what is no answer from places: {str(event)[:60]}")


def _told(error: Refused) -> UserError:
    """What a refusal means for who asks."""
    if error.param == "with":
        return CannotAsk(str(error))
    if error.http in (404, 405) and error.detail not in ("memory_not_found", "model_not_found"):
        return CannotAsk(
            "the server cannot be asked about memories; it is another program, or another version of this one"
        )
    if error.param == "question":
        return TooLongToAsk(str(error))
    return error
