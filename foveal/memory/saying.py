"""One turn of a conversation in work."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from foveal import cache
from foveal.batch import Event, FinishReason, Job, SamplingParams
from foveal.engine import Start
from foveal.errors import ParameterError
from foveal.memory.citations import Citation
from foveal.memory.citing import Citing
from foveal.memory.memory import Memory
from foveal.text.chat import ChatEncoding, Rendered
from foveal.text.events import ReplyEvent
from foveal.text.messages import Conversation
from foveal.text.reply import Reply
from foveal.text.reply_stream import ReplyStream


@dataclass(frozen=True)
class Prompt:
    """The tokens of a turn up to where the model goes on.

    head: where in them the head of the model's part begins.   end: the token that ends that part.
    asked: the message.   messages, rendered: what the reply is parsed by.
    """

    ids: list[int]
    head: int
    end: int
    asked: str
    messages: Conversation
    rendered: Rendered


@dataclass(frozen=True, kw_only=True)
class Said:
    """What became of one message.

    finish: why the reply ended; CANCELLED before its first token: the conversation is as it was, and `reply` is None.
    Of the `prompt_tokens`, `held` were in the context already, `stored` were found in the store, and `run` were run;
    `written` were written. citations: lines of the memory that the reply came from, largest share first.
    first, whole: seconds to the first token and to the end.
    """

    finish: FinishReason
    reply: Reply | None
    prompt_tokens: int
    held: int
    stored: int
    run: int
    written: int
    citations: tuple[Citation, ...]
    first: float
    whole: float


class Saying:
    """The reply to one message: iterate once for its events. `result` is there when the iteration has ended.

    Dropped or closed early, the conversation is as it was before the message.
    """

    def __init__(
        self,
        memory: Memory,
        encoding: ChatEncoding,
        prompt: Prompt,
        start: Start,
        params: SamplingParams,
        source: int,
        take: Callable[[cache.Sequence, Prompt, list[int]], None],
    ) -> None:
        """`memory` is the conversation's; `start` has the sequence that the turn runs on. `source`: the first tokens of
        the memory that are cited (0: none are). `take` is given the sequence, with the turn whole."""
        self._engine, self._held = memory.engine, memory.length
        self._prompt, self._start, self._take = prompt, start, take
        self._stream = ReplyStream(encoding.parser(prompt.messages, prompt.rendered))
        self._citing = None
        if source:
            since = [*memory.sequence.token_range(source, memory.length).tolist(), *prompt.ids]
            self._citing = Citing(memory, since, source=source)
        self._sampled: list[int] = []
        self._first = 0.0
        self._result: Said | None = None
        self._began = time.perf_counter()
        self._job = self._begin(params)
        self._events = self._run()

    def _begin(self, params: SamplingParams) -> Job:
        start = self._start
        rest = self._prompt.ids[start.tokens :]
        try:
            return self._engine.go_on(start.sequence, rest, params, text=self._stream, trace=self._citing is not None)
        except BaseException:
            self._engine.free(start.sequence)
            raise

    def __iter__(self) -> Iterator[ReplyEvent]:
        return self._events

    def stop(self) -> None:
        """End the reply before the next step; what was said stays. Never waits: a signal's handler may call it."""
        self._job.cancel()

    def close(self) -> None:
        """Give the turn up."""
        self._events.close()
        if self._result is None:
            self._job.close()
            self._engine.free(self._start.sequence)

    @property
    def result(self) -> Said:
        """Raises `ParameterError` while the reply is not whole."""
        if self._result is None:
            raise ParameterError("the reply has not ended; iterate over it first")
        return self._result

    def _run(self) -> Generator[ReplyEvent, None, None]:
        last: Event | None = None
        try:
            for last in self._job.events():
                self._add(last)
                yield from self._stream.take()
            assert last is not None and last.finish_reason is not None
            if self._sampled:
                self._end_turn(last)
        except BaseException:
            self._engine.free(self._start.sequence)
            raise
        if not self._sampled:
            self._engine.free(self._start.sequence)
        self._result = self._said(last, last.finish_reason)

    def _add(self, event: Event) -> None:
        if event.sampled is None:
            return
        if not self._sampled:
            self._first = time.perf_counter() - self._began
        self._sampled.append(event.sampled.token)
        if self._citing is not None:
            self._citing.add([event])

    def _end_turn(self, last: Event) -> None:
        """Run what is left of the turn: the last token that was chosen, and the one that ends it."""
        prompt, sequence = self._prompt, self._start.sequence
        said = self._sampled if _stopped(last) else [*self._sampled, prompt.end]
        whole = [*prompt.ids, *said]
        self._engine.prefill(sequence, whole[sequence.length - self._held :])
        self._take(sequence, prompt, said)

    def _said(self, last: Event, finish: FinishReason) -> Said:
        prompt, start, spoke = self._prompt, self._start, bool(self._sampled)
        return Said(
            finish=finish,
            reply=self._stream.parser.reply() if spoke else None,
            prompt_tokens=self._held + len(prompt.ids),
            held=self._held,
            stored=start.reused,
            run=len(prompt.ids) - start.reused,
            written=len(self._sampled) - _stopped(last),
            citations=self._citing.citations() if self._citing is not None and spoke else (),
            first=self._first,
            whole=time.perf_counter() - self._began,
        )


def _stopped(last: Event) -> bool:
    """Whether the last token that was chosen is the one that ends the turn."""
    return last.sampled is not None and not last.is_output
