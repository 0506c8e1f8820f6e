"""A question, its places, and the answer as it comes.

answer = memory.ask("How is a page named?", with_=ChatModel.open("smollm2"))
answer.text, answer.citations, answer.steps
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.batch import Event, FinishReason, Job, ParameterError, SamplingParams
from foveal.memory.asking.chat_model import ChatModel, looks_back
from foveal.memory.asking.places import Finder, Found
from foveal.memory.asking.prompt import asked
from foveal.memory.asking.support import AnswerCitation, citations
from foveal.memory.asking.telling import Telling
from foveal.text.events import ContentDelta, ReplyEvent

if TYPE_CHECKING:
    from foveal.memory.memory import Memory

DEFAULT_ZOOM = 3
"""Places that are read again."""
PLACE_TOKENS = 480
"""Tokens that all places may take together, by default."""
ANSWER_TOKENS = 96
BESIDE = 64
"""Tokens that a place may take beside its text: its number and path, and a share of what the chat form adds."""
NOTHING = "Nothing in this memory fits the question."


@dataclass(frozen=True)
class Step:
    """One thing that was done: ``find``, ``read`` or ``write``; what of it is told to people, in `tokens` and
    `seconds`."""

    name: str
    detail: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What a memory was asked, and what came.

    `citations` are the lines the answer rests on, each from one of the `places` that were shown to the model. Empty
    `citations` beside an answer say that no shown line holds what it says; `places` are empty, and the text is
    `NOTHING`, when no place fitted. With zoom 0 the model was shown no place.
    """

    question: str
    text: str
    citations: tuple[AnswerCitation, ...]
    places: tuple[Found, ...]
    steps: tuple[Step, ...]
    finish_reason: FinishReason = FinishReason.STOP
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def found(self) -> bool:
        """Whether any place fitted."""
        return bool(self.places)


class AnswerStream:
    """Pieces of an answer as they come; iterate once. `result` is known when the iteration has ended. Closing it early
    cancels; `result` then holds what there was."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._pieces = asking.run()

    @property
    def places(self) -> tuple[Found, ...]:
        """What the model is shown. They are found now, if they were not yet."""
        self._asking.find()
        return self._asking.places

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def result(self) -> Answer:
        """Raises `ParameterError` while the answer is still coming."""
        if self._asking.result is None:
            raise ParameterError("the answer has not ended; iterate over it first")
        return self._asking.result

    def finish(self) -> Answer:
        """Run to the end, and return the result."""
        for _ in self._pieces:
            pass
        return self.result

    def stop(self) -> None:
        """End it as soon as can be; what was told stays. Never waits: a signal's handler may call it."""
        self._asking.stop()

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._asking.stopped

    def close(self) -> None:
        """Stop, and wait until it has ended."""
        self._pieces.close()


class NoRoom(ParameterError):
    """A question that leaves the model no room for a place."""

    param = "question"
    """What a server says is wrong."""


class Asking:
    """One question in work. Its places are found by `find`, at the latest when it is run."""

    def __init__(
        self,
        memory: Memory,
        question: str,
        chat: ChatModel,
        *,
        zoom: int = DEFAULT_ZOOM,
        place_tokens: int = PLACE_TOKENS,
        max_tokens: int = ANSWER_TOKENS,
        attention: bool = True,
        search: bool = True,
    ) -> None:
        """Raises `ParameterError` for an empty question or numbers out of range, `NoRoom`."""
        if not question.strip():
            raise ParameterError("the question is empty; say what you want to know")
        if zoom < 0 or place_tokens < 1 or max_tokens < 1:
            raise ParameterError("zoom is 0 or more, place_tokens and max_tokens 1 or more")
        behind = memory if chat.engine is memory.engine and looks_back(chat.engine.config) else None
        seen = 0 if behind is None else memory.length
        left = chat.room - seen - max_tokens - 2 * chat.count(question)
        zoom = min(zoom, max(1, left // (2 * BESIDE)))  # of many places none would have room for more than its path
        self._question, self._chat, self._zoom, self._most = question.strip(), chat, zoom, max_tokens
        self._behind = behind
        self.places: tuple[Found, ...] = ()
        self.steps: list[Step] = []
        self.result: Answer | None = None
        self.stopped = False
        self._job: Job | None = None
        room = left - BESIDE * max(1, zoom)
        if room < 1:
            beside = " beside this memory" if seen else ""
            raise NoRoom(
                f"the model {chat.engine.name} sees {chat.room - seen:,} tokens at once{beside}; this question and an "
                f"answer of {max_tokens:,} tokens leave no room for a place: ask a shorter question, or for less"
            )
        self._memory, self._budget = memory, min(place_tokens, room)
        self._lists = {"attention": attention, "search": search}

    def stop(self) -> None:
        """End it before the next step, whatever is in work. Never waits."""
        self.stopped = True
        if self._job is not None:
            self._job.cancel()

    def find(self) -> None:
        """Find its places, once."""
        if not self._zoom or self.steps:
            return
        memory, began = self._memory, time.perf_counter()
        with Finder(memory) as finder:
            found = finder.find(
                self._question,
                self._zoom,
                self._budget,
                self._chat.count,
                should_stop=lambda: self.stopped,
                **self._lists,
            )
        self.places = tuple(found)
        told = f"{len(found)} place{'s' * (len(found) != 1)} of {memory.length:,} tokens"
        self._step("find", told, sum(place.tokens for place in found), began)

    def _step(self, name: str, detail: str, tokens: int, began: float) -> None:
        self.steps.append(Step(name, detail, tokens, round(time.perf_counter() - began, 3)))

    def run(self) -> Generator[str, None, None]:
        """The answer, piece by piece."""
        self.find()
        if self.stopped:
            self.result = self._answer("", FinishReason.CANCELLED, 0, 0)
            return
        if self._zoom and not self.places:
            self.result = self._answer(NOTHING, FinishReason.STOP, 0, 0)
            yield NOTHING
            return
        conversation = asked(self._question, self.places)
        rendered = self._chat.encoding.render(conversation)
        parser = self._chat.encoding.parser(conversation, rendered)
        telling = Telling()
        events = self._events(rendered.ids)
        written, reason, began = 0, FinishReason.CANCELLED, time.perf_counter()
        try:
            for event in events:
                reason = event.finish_reason or reason
                if event.sampled is None or not event.is_output:
                    continue
                if not written:
                    self._step("read", "the question and its places", len(rendered.ids), began)
                    began = time.perf_counter()
                written += 1
                yield from telling.add(_content(parser.push(event.sampled.token)))
                if telling.repeats:
                    break
            yield from telling.add(_content(parser.flush()))
            yield from telling.end()
        finally:
            events.close()
            self._step("write", "the answer", written, began)
            self.result = self._answer(telling.text.strip(), reason, len(rendered.ids), written)

    def _events(self, ids: list[int]) -> Generator[Event]:
        """What the chat model writes behind `ids`."""
        base = self._behind.sequence if self._behind is not None else None
        params = SamplingParams(max_tokens=self._most, stop_tokens=tuple(self._chat.encoding.stop_tokens))
        self._job = self._chat.engine.submit(ids, params, base=base)
        if self.stopped:  # before there was a job to cancel
            self._job.cancel()
        with contextlib.closing(self._job.events()) as events:
            yield from events

    def _answer(self, text: str, reason: FinishReason, prompt: int, written: int) -> Answer:
        rests = citations(text, self._question, self.places) if written else ()
        return Answer(self._question, text, rests, self.places, tuple(self.steps), reason, prompt, written)


def _content(events: Iterable[ReplyEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ContentDelta))
