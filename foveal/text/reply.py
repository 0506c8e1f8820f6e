"""A model's reply, token by token, to reasoning, content and tool calls.

What comes out never depends on how the reply was cut, no markup gets into the content, and nothing is lost: what cannot
be read as a call is told as a `Problem` that holds its text.

    parser = encoding.parser(rendered)
    for token in sampled: show(parser.push(token))
    show(parser.flush())
    parser.reply().message        # as the client gets it, and sends it back
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from foveal.text.calls import CallWriter, Malformed, new_call_id
from foveal.text.detokenizer import StopChecker, StreamingDetokenizer
from foveal.text.events import ContentDelta, Problem, ReasoningDelta, ReplyEvent
from foveal.text.messages import AssistantMessage
from foveal.text.source import CONTROL, PLAIN, Alphabet, Source, Tag, TagSet
from foveal.text.tokenizer import Tokenizer

Steps: TypeAlias = Generator[None, None, None]
"""A parser that stops wherever it needs more of the source."""


class ToolSyntax(Protocol):
    """How a model writes tool calls."""

    openers: tuple[Tag, ...]
    """What a block of calls begins with."""
    strays: tuple[Tag, ...]
    """What closes parts of a block, and is markup outside of one too."""

    def bare(self, source: Source) -> bool | None:
        """Whether the reply's content begins with a call that no opener announces; None while that is open."""
        ...

    def parse(self, source: Source, writer: CallWriter) -> Steps:
        """Read one block, opener included, and write its calls. Raises `Malformed`."""
        ...

    def skip(self, source: Source) -> Steps:
        """Take the rest of a malformed block."""
        ...


@dataclass(frozen=True, kw_only=True)
class Markup:
    """What a parser looks for in a reply.

    think: the tags around reasoning, None if the model has none.   tools: None if calls are not looked for.
    ends: ids that end the reply and are no part of it.
    """

    alphabet: Alphabet
    think: tuple[Tag, Tag] | None
    tools: ToolSyntax | None
    ends: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole reply. `message` holds the complete calls only; whatever else there was is in `problems`."""

    message: AssistantMessage
    problems: tuple[Problem, ...]
    reasoning_tokens: int
    stopped_by: str | None
    """The stop string that ended the content, if any."""


class ReplyParser:
    """Reads one reply. Push tokens (or text, never both), then flush; every call returns the events that are certain.

    Joined, the events say the same however the reply was cut. Stop strings are looked for in the content only.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        markup: Markup,
        *,
        in_reasoning: bool = False,
        continues: bool = False,
        literal: bool = False,
        stop: Sequence[str] = (),
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """in_reasoning: the prompt has opened the reasoning.   continues: the prompt holds the reply's beginning, so
        line breaks at the start count.   literal: text will be pushed, in which control strings are control tokens.
        """
        self._markup, self._tokenizer = markup, tokenizer
        self._control, self._table = tokenizer.control_ids, tokenizer.token_bytes
        self._source = Source(literal=literal)
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._checker = StopChecker(stop)
        self._events: list[ReplyEvent] = []
        self._writer = CallWriter(self._emit, new_id)
        self._lead = "" if continues else "\n"
        self._reasons = in_reasoning
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._problems: list[Problem] = []
        self._reasoning_tokens = 0
        self._steps = self._run()
        self._ended = False

    # ------------------------------------------------------------------ in

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._checker.stopped

    @property
    def calling(self) -> bool:
        """Whether a complete tool call has been read."""
        return bool(self._writer.calls)

    @property
    def reasoning_tokens(self) -> int:
        """How many of the tokens so far were reasoning."""
        return self._reasoning_tokens

    def push(self, token: int) -> list[ReplyEvent]:
        """The events that `token` makes certain. Raises `TokenizerError` for an id outside the vocabulary."""
        if token in self._markup.ends:
            return []
        self._reasoning_tokens += self._reasons
        if token in self._control:
            self._source.add(self._detokenizer.flush(), PLAIN)
            self._source.add(self._table(token).decode(), self._markup.alphabet.kind(token))
        else:
            self._source.add(self._detokenizer.push(token), PLAIN)
        return self._advance()

    def push_text(self, text: str) -> list[ReplyEvent]:
        """The events that a piece of text makes certain, for a parser made with `literal`."""
        self._source.add(text, PLAIN)
        return self._advance()

    def flush(self) -> list[ReplyEvent]:
        """The reply has ended: what was held back. Pushing afterwards does nothing."""
        self._source.add(self._detokenizer.flush(), PLAIN)
        self._source.final = True
        return self._advance()

    def reply(self) -> Reply:
        """The reply so far; whole after `flush`."""
        message = AssistantMessage(
            content="".join(self._content),
            reasoning="".join(self._reasoning),
            tool_calls=tuple(self._writer.calls),
        )
        return Reply(
            message=message,
            problems=tuple(self._problems),
            reasoning_tokens=self._reasoning_tokens,
            stopped_by=self._checker.matched,
        )

    # ------------------------------------------------------------------ the reply's parts

    def _advance(self) -> list[ReplyEvent]:
        if not self._ended:
            self._ended = next(self._steps, True) is True
        events = self._events.copy()
        self._events.clear()
        return events

    def _run(self) -> Steps:
        if not self._reasons:
            self._reasons = yield from self._opens_reasoning()
        if self._reasons:
            yield from self._reason()
        while (yield from self._speak()):
            yield from self._call()
            self._lead = "\n "

    def _opens_reasoning(self) -> Generator[None, None, bool]:
        """Whether the reply itself opens its reasoning; the tag is taken."""
        think = self._markup.think
        if think is None or not self._lead:
            return False
        while not self._source.final and not self._source.text.strip("\n"):
            yield
        spaces = len(self._source.text) - len(self._source.text.lstrip("\n"))
        while (answer := self._source.begins(think[0], spaces)) is None:
            yield
        if answer:
            self._source.take(spaces + len(think[0].text))
        return answer

    def _reason(self) -> Steps:
        ends = () if self._markup.think is None else (self._markup.think[1],)
        tags = TagSet([*ends, *self._openers, *self._strays])
        while True:
            yield from self._skip_lead()
            place, tag = self._source.first(tags)
            if tag is None:
                place = self._certain(tags)
                self._say(self._source.text[:place], place)
                if self._source.final:
                    break
                yield
            elif tag in self._strays:
                self._leave_out(place, tag)
            else:
                self._say(self._source.text[:place].rstrip("\n"), place)
                self._source.take(len(tag.text) if tag in ends else 0)
                break
        self._reasons = False
        self._lead = "\n"

    def _speak(self) -> Generator[None, None, bool]:
        """Content up to a block of calls (True) or the end (False)."""
        ends = () if self._markup.think is None else (self._markup.think[1],)
        tags = TagSet([*ends, *self._openers, *self._strays])
        if (yield from self._begins_bare()):
            return True
        while not self.stopped:
            yield from self._skip_lead()
            place, tag = self._source.first(tags)
            if tag in self._openers:
                self._say(self._source.text[:place].rstrip("\n"), place)
                self._settle()
                return not self.stopped
            if tag is not None:
                self._leave_out(place, tag)
                continue
            place = self._certain(tags)
            self._say(self._source.text[:place], place)
            if self._source.final:
                self._settle()
                return False
            yield
        return False

    def _begins_bare(self) -> Generator[None, None, bool]:
        tools = self._markup.tools
        if tools is None or self._content:
            return False
        while (answer := tools.bare(self._source)) is None:
            yield
        return answer

    def _call(self) -> Steps:
        assert self._markup.tools is not None
        self._source.record()
        try:
            yield from self._markup.tools.parse(self._source, self._writer)
            self._source.recorded()
        except Malformed as error:
            index = self._writer.abandon()
            yield from self._markup.tools.skip(self._source)
            self._tell(str(error), self._source.recorded(), index)

    # ------------------------------------------------------------------ out

    @property
    def _openers(self) -> tuple[Tag, ...]:
        return () if self._markup.tools is None else self._markup.tools.openers

    @property
    def _strays(self) -> tuple[Tag, ...]:
        return () if self._markup.tools is None else self._markup.tools.strays

    def _leave_out(self, place: int, tag: Tag) -> None:
        """Say the text before a stray tag; the tag is told."""
        self._say(self._source.text[:place], place)
        self._stray(self._source.take(len(tag.text))[0])

    def _skip_lead(self) -> Steps:
        """Line breaks at the start of a part are no part of it."""
        while self._lead:
            text = self._source.text
            self._source.take(len(text) - len(text.lstrip(self._lead)))
            if self._source.text or self._source.final:
                self._lead = ""
            else:
                yield

    def _certain(self, tags: TagSet) -> int:
        """How much of the source is certainly text: not the beginning of a tag, nor line breaks before one."""
        if self._source.final:
            return len(self._source.text)
        place = len(self._source.text) - self._source.partial(tags)
        return len(self._source.text[:place].rstrip("\n"))

    def _say(self, text: str, take: int) -> None:
        """`text` is the beginning of what is taken; control tokens in it are left out and told."""
        kinds = self._source.take(take)[1][: len(text)]
        if CONTROL in kinds:
            hidden = "".join(c for c, kind in zip(text, kinds, strict=True) if kind == CONTROL)
            text = "".join(c for c, kind in zip(text, kinds, strict=True) if kind != CONTROL)
            self._stray(hidden)
        if self._reasons:
            if text:
                self._reasoning.append(text)
                self._emit(ReasoningDelta(text))
            return
        self._show(self._checker.push(text))

    def _show(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._emit(ContentDelta(text))

    def _settle(self) -> None:
        """What was held back as a possible stop string is none."""
        self._show(self._checker.flush())

    def _stray(self, raw: str) -> None:
        self._tell("a control token stands where it means nothing; it was left out", raw, None)

    def _tell(self, message: str, raw: str, index: int | None) -> None:
        self._emit(Problem(message, raw, index))

    def _emit(self, event: ReplyEvent) -> None:
        self._events.append(event)
        if isinstance(event, Problem):
            self._problems.append(event)
