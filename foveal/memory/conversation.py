"""A conversation with a model as a context that only grows: a turn costs its own tokens, and can be gone back to.

The context is the conversation. Nothing is rendered again: a turn is what its encoding writes behind the end of the
turn before, and what the model sampled stays as it was sampled. The source map has two documents for each turn,
``chat/N/user`` and ``chat/N/assistant`` (``chat/N/answer`` where it was worded from places of the memory), so that a
saved conversation is a memory like any other.

chat = Conversation.begin(engine, encoding, memory=Memory.load(engine, "docs"))
for event in (reply := chat.say("Where is the port set?")):
    print(event)
for piece in (asked := chat.ask("Who reads it?", with_=ChatModel.open("smollm2"))):
    print(piece)
chat.save("talk")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from foveal import cache
from foveal.batch import GREEDY, ContextLengthError, SamplingParams
from foveal.config import PAGE_TOKENS
from foveal.engine import Engine, Start
from foveal.errors import ParameterError
from foveal.memory.asked_turn import AskedTurn
from foveal.memory.asking.answering import ANSWER_TOKENS, DEFAULT_ZOOM, PLACE_TOKENS, AnswerStream, Asking
from foveal.memory.asking.chat_model import ChatModel
from foveal.memory.memory import Memory
from foveal.memory.names import Root, check_name, find
from foveal.memory.options import SourceOptions
from foveal.memory.prefixes import StoredPrefixes
from foveal.memory.saying import Prompt, Saying
from foveal.memory.turn_parts import ANSWER, ASSISTANT, USER, part_of, turn_in, turn_path, without_marks
from foveal.sources.tokenise import from_ids
from foveal.store.objects import Context
from foveal.store.store import Store
from foveal.text.chat import ChatEncoding, ChatUnsupported, Rendered
from foveal.text.messages import AssistantMessage, Message, SystemMessage, Thinking, UserMessage
from foveal.text.messages import Conversation as Messages

MOST_TOKENS = 1024
"""Tokens of a reply, where nobody says otherwise."""


class NotAConversation(ParameterError):
    """A memory that is none; the message says what to do with it."""


@dataclass(frozen=True)
class Turn:
    """One turn: what was asked and answered. `end`: tokens of the context up to its end."""

    number: int
    user: str
    assistant: str
    end: int


class Conversation:
    """Turns behind a memory, or behind nothing. For one caller. Use it in a ``with`` block, or `free` it."""

    def __init__(self, memory: Memory, encoding: ChatEncoding, *, system: str = "", thinking: Thinking = Thinking.OFF):
        """`memory` belongs to the conversation from now on. Use `begin` or `load`."""
        self.memory, self.encoding, self.system, self.thinking = memory, encoding, system, thinking
        self._saved: Context | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    @classmethod
    def begin(
        cls,
        engine: Engine,
        encoding: ChatEncoding,
        *,
        memory: Memory | None = None,
        store: Store | None = None,
        system: str = "",
        thinking: Thinking = Thinking.OFF,
    ) -> Self:
        """A conversation without turns, behind `memory` (a fork of it) or behind nothing.

        `store`: what it has of a prompt is not run again. `system`: instructions before the first turn.
        """
        own = Memory.begin(engine, SourceOptions("-"), store=store) if memory is None else memory.fork()
        own.chat, own.store = own.length, store or own.store
        return cls(own, encoding, system=system, thinking=thinking)

    @classmethod
    def load(
        cls,
        engine: Engine,
        encoding: ChatEncoding,
        name: str,
        *,
        root: Root = None,
        system: str = "",
        thinking: Thinking = Thinking.OFF,
    ) -> Self:
        """The conversation saved as `name`. `system`: instructions for where it begins anew; its turns have those that
        they were said with. Raises what `Memory.load` does, and `NotAConversation`."""
        memory = Memory.load(engine, name, root=root)
        if memory.chat is None:
            memory.free()
            raise NotAConversation(f"{name} is a memory and no conversation; give it as the memory to talk about")
        chat = cls(memory, encoding, system=system, thinking=thinking)
        assert memory.store is not None
        chat._saved = memory.store.context(name)
        memory.forked_from = (chat._saved.parent, chat._saved.forked_at)
        return chat

    # ------------------------------------------------------------------ what there is

    @property
    def engine(self) -> Engine:
        """The engine that it runs on."""
        return self.memory.engine

    @property
    def behind(self) -> int:
        """Tokens of the memory that it stands behind."""
        assert self.memory.chat is not None
        return self.memory.chat

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, in order."""
        found: list[Turn] = []
        asked = ""
        for number, (path, first, after) in enumerate(self.memory.places.documents):
            if first < self.behind:
                continue
            said = self._text(number, first, after)
            if part_of(path) == USER:
                asked = said
            else:
                found.append(Turn(len(found) + 1, asked, said, after))
        return tuple(found)

    def _text(self, number: int, first: int, after: int) -> str:
        """The text of a document without its head and the marks around it."""
        tokenizer = self.engine.tokenizer
        ids = self.memory.sequence.token_range(first, after).tolist()
        head = int(self.memory.places.line_starts(number)[1])
        return without_marks(tokenizer.decode(ids)[head:], ids, tokenizer).strip()

    # ------------------------------------------------------------------ going on

    def say(
        self, said: str, params: SamplingParams = GREEDY, *, max_tokens: int = MOST_TOKENS, cite: bool = True
    ) -> Saying:
        """Say something; iterate over what is returned for the model's reply. The conversation has the turn when the
        iteration has ended. `cite`: tell which lines of the memory the reply came from.

        Raises `ContextLengthError` when it does not fit, `ChatUnsupported` for an encoding that cannot go on.
        """
        prompt = self._prompt(said, self.thinking)
        room = self._room(len(prompt.ids))
        stops = tuple(token for token in self.encoding.stop_tokens if token != self.engine.tokenizer.eos_id)
        params = replace(params, max_tokens=min(max_tokens, room), stop_tokens=(*params.stop_tokens, *stops))
        start = self._start(prompt.ids)
        source = self.behind if cite else 0
        return Saying(self.memory, self.encoding, prompt, start, params, source, self._take)

    def ask(
        self,
        question: str,
        *,
        with_: ChatModel,
        zoom: int = DEFAULT_ZOOM,
        max_tokens: int = ANSWER_TOKENS,
        place_tokens: int = PLACE_TOKENS,
    ) -> AskedTurn:
        """Ask what the conversation stands behind, and its own turns, as `Memory.ask_stream` does; iterate over what is
        returned for the answer. Its places are found then, or when they are asked for.

        With zoom 0 no place is shown: the model answers by itself. Raises `ContextLengthError` when the question does
        not fit, `ParameterError` as `Memory.ask` does, `foveal.memory.asking.answering.NoRoom`, `ChatUnsupported`.
        """
        asking = Asking(self.memory, question, with_, zoom=zoom, max_tokens=max_tokens, place_tokens=place_tokens)
        self._room(len(self._prompt(question, Thinking.OFF).ids))
        return AskedTurn(AnswerStream(asking), lambda answer: self.tell(question, answer), bare=not zoom)

    def tell(self, said: str, answer: str) -> None:
        """Add a turn that was worded elsewhere: what was said, and the answer.

        Raises `ContextLengthError` when it does not fit, `ChatUnsupported` for an encoding that cannot go on, and what
        running tokens does; the conversation is then as it was.
        """
        prompt = self._prompt(said, Thinking.OFF)
        told = [*self.engine.tokenizer.encode(answer), prompt.end]
        self._room(len(prompt.ids) + len(told) - 1)
        whole = [*prompt.ids, *told]
        start = self._start(whole)
        try:
            self.engine.prefill(start.sequence, whole[start.tokens :])
            self._take(start.sequence, prompt, told, ANSWER)
        except BaseException:
            self.engine.free(start.sequence)
            raise

    def _room(self, more: int) -> int:
        """Tokens that are left behind `more` of them. Raises `ContextLengthError` when that is none."""
        length = self.memory.length + more
        room = self.engine.batch.context_length - length - 1  # a place for the token that ends the turn
        if room < 1:
            raise ContextLengthError(
                f"the conversation and this message have {length:,} tokens, and the model's context is "
                f"{self.engine.batch.context_length:,}; go back to an earlier turn, or begin a new conversation"
            )
        return room

    def _prompt(self, said: str, thinking: Thinking) -> Prompt:
        """What is read for a message: the first turn is rendered whole, a later one behind the end of any turn."""
        first = self.memory.length == self.behind
        before: tuple[Message, ...] = (UserMessage("x"), AssistantMessage(content="x"))
        if first:
            before = (SystemMessage(self.system),) if self.system else ()
        messages = Messages(messages=(*before, UserMessage(said)), thinking=thinking, drop_reasoning=False)
        rendered = self.encoding.render(messages)
        start = self._beginning(rendered.ids) if first else self._end_of_turn(rendered)
        end = self._end_token(rendered)
        return Prompt(rendered.ids[start:], rendered.head - start, end, said, messages, rendered)

    def _beginning(self, ids: list[int]) -> int:
        """One beginning of a text is enough."""
        memory, bos = self.memory, self.engine.tokenizer.bos_id
        again = memory.length and len(ids) > 1 and ids[0] == bos == int(memory.sequence.token_range(0, 1)[0])
        return int(bool(again))

    def _end_of_turn(self, rendered: Rendered) -> int:
        if not rendered.turns:
            raise ChatUnsupported(
                f"the chat template of {self.engine.name} does not end a turn with one control token, so a "
                "conversation cannot go on behind it; `foveal serve` can, which reads all turns again"
            )
        return rendered.turns[-1].end

    def _end_token(self, rendered: Rendered) -> int:
        """The token that ends the model's turn."""
        if rendered.turns:
            return rendered.ids[rendered.turns[-1].end - 1]
        stops = self.encoding.stop_tokens
        return stops[0] if stops else self.engine.tokenizer.eos_id

    def _start(self, ids: list[int]) -> Start:
        """A sequence of its own on which a turn runs: the context, and what the store has of the turn."""
        prefixes = StoredPrefixes(self.memory.store) if self.memory.store is not None else None
        worth = prefixes if len(ids) > PAGE_TOKENS else None
        start = self.engine.start(ids, base=self.memory.sequence, prefixes=worth)
        start.sequence.tail_every = self.memory.sequence.tail_every
        return start

    def _take(self, sequence: cache.Sequence, prompt: Prompt, said: list[int], part: str = ASSISTANT) -> None:
        """Go on from `sequence`, which holds a turn: `prompt`, and the ids of the `part` that answers it."""
        memory, tokenizer = self.memory, self.engine.tokenizer
        number = self._turns_before() + (len(memory.places.documents) - self._documents_before()) // 2 + 1
        user, mine = prompt.ids[: prompt.head], [*prompt.ids[prompt.head :], *said]
        places = memory.places.copy()
        header = max(0, tokenizer.decode(user).find(prompt.asked))
        places.append(from_ids(turn_path(number, USER), tokenizer, user, header))
        header = len(tokenizer.decode(prompt.ids[prompt.head :]))
        places.append(from_ids(turn_path(number, part), tokenizer, mine, header))
        old, memory.sequence, memory.places = memory.sequence, sequence, places
        memory.totals = replace(
            memory.totals,
            files=len(places.documents),
            text_bytes=memory.totals.text_bytes + len(tokenizer.decode_bytes([*user, *mine])),
            tokens=sequence.length,
            complete=True,
        )
        self.engine.free(old)

    def _documents_before(self) -> int:
        return sum(first < self.behind for _, first, _ in self.memory.places.documents)

    def _turns_before(self) -> int:
        """The last turn of what it stands behind, where that is a conversation itself: numbers go on from there, since
        a path that comes twice is another version of the first."""
        return max((turn_in(path) for path, first, _ in self.memory.places.documents if first < self.behind), default=0)

    # ------------------------------------------------------------------ forks, and saving

    def fork(self, turn: int | None = None) -> Conversation:
        """Another conversation that goes on behind turn number `turn` (0: before the first; default: the last). It is
        not saved yet. Raises `ParameterError` if there is no such turn."""
        ends = [self.behind, *(each.end for each in self.turns)]
        number = len(ends) - 1 if turn is None else turn
        if not 0 <= number < len(ends):
            raise ParameterError(f"there is no turn {number}; the conversation has {len(ends) - 1}")
        if ends[number]:
            memory = self.memory.fork(ends[number])
            memory.chat = self.behind
        else:
            memory = Memory.begin(self.engine, self.memory.options, store=self.memory.store)
            memory.chat = 0
        memory.forked_from = self.memory.forked_from  # what it is about, however often it was forked
        return Conversation(memory, self.encoding, system=self.system, thinking=self.thinking)

    def save(self, name: str, *, root: Root = None) -> None:
        """Save it under `name`; what the store has already is not written again.

        Raises `InvalidName`, `StoreError`, and `Conflict` when somebody else has saved another state under that name
        meanwhile, or `NameExists` when there is one that is not this conversation."""
        check_name(name)
        known = self._saved if self._saved is not None and self._saved.name == name else None
        store, _ = find(name, root if root is not None else self.memory.store)
        if self.memory.length:
            self._saved = self.memory.save_in(store, name, onto=known, new=known is None)
            self.memory.name = name

    def free(self) -> None:
        """Give the pages back. What was not saved is lost."""
        self.memory.free()
