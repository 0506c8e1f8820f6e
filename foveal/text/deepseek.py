"""DeepSeek-V4's chat encoding. The library `deepseek-recipe` renders; the ids are ours.

Only what the library names as control tokens becomes control ids. Where its rendering and the official encoder of April
2026 differ (the levels of effort, calls without arguments, old reasoning that is kept), the pieces are brought to the
official form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foveal.text.chat import ChatError, Rendered, Turn, needs
from foveal.text.dsml import DsmlSyntax
from foveal.text.dsml_grammar import dsml_calls
from foveal.text.messages import (
    AssistantMessage,
    Conversation,
    Message,
    SystemMessage,
    Thinking,
    ToolChoice,
    ToolDefinition,
    ToolMessage,
    ToolMode,
)
from foveal.text.pieces import Piece, PieceEncoder
from foveal.text.reply import Markup, ReplyParser
from foveal.text.source import Alphabet
from foveal.text.specials import ASSISTANT, DSML, EOS, THINK_END, THINK_START
from foveal.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import deepseek_recipe

EFFORTS: Mapping[Thinking, str] = {Thinking.LOW: "low", Thinking.HIGH: "low", Thinking.MAX: "high"}
"""The library's efforts that render what V4 of April 2026 was trained on: no preamble but for the highest level."""
EFFORTS_0731: Mapping[Thinking, str] = {Thinking.LOW: "low", Thinking.HIGH: "high", Thinking.MAX: "max"}
"""Those of V4-Flash-0731, which has a preamble for two levels."""

_SURROGATES = re.compile("[\ud800-\udfff]")
_NO_ARGUMENTS = re.compile(r'invoke name="[^\n]*">\n</')


class DeepSeekEncoding:
    """The encoding of every model with DeepSeek-V4's control tokens."""

    name = "deepseek-v4"
    thinking_levels = tuple(Thinking)
    think_end = THINK_END
    gap_after_reasoning = False

    def __init__(self, tokenizer: Tokenizer, *, efforts: Mapping[Thinking, str] = EFFORTS) -> None:
        """Raises `ChatUnsupported` if the library is missing, `TokenizerError` if a control token is."""
        try:
            import deepseek_recipe
        except ImportError as error:
            raise needs("deepseek-recipe", error) from error
        self._library = deepseek_recipe
        self._renderer = deepseek_recipe.DeepseekV4Encoding()
        self._tokenizer, self._efforts = tokenizer, efforts
        self._encoder = PieceEncoder(tokenizer)
        self._alphabet = Alphabet(tokenizer, tokenizer.control_ids)
        self._think = self._alphabet.tag(THINK_START), self._alphabet.tag(THINK_END)
        self.stop_tokens = (tokenizer.control_id(EOS),)

    def render(self, conversation: Conversation) -> Rendered:
        """See `ChatEncoding`. System messages after the first other message become reminders inside the user's turn,
        as the library does with those of the Messages API."""
        _check(conversation)
        pieces = self._pieces(conversation)
        turns = _Turns(pieces, conversation)
        ids, starts = self._encoder.encode(turns.pieces)
        located = tuple(Turn(turn.message, starts[turn.start], starts[turn.end]) for turn in turns.done)
        if conversation.add_generation_prompt or conversation.continue_last:
            return Rendered(ids, located, starts[turns.head], turns.in_reasoning)
        return Rendered(ids[: starts[turns.head]], located, starts[turns.head])

    def parser(self, conversation: Conversation, rendered: Rendered, *, stop: Sequence[str] = ()) -> ReplyParser:
        """See `ChatEncoding`. Calls are looked for unless the conversation forbids them."""
        calls = conversation.tool_choice.mode is not ToolMode.NONE
        markup = Markup(
            alphabet=self._alphabet,
            think=self._think,
            tools=DsmlSyntax(self._alphabet) if calls else None,
            ends=frozenset(self.stop_tokens),
        )
        return ReplyParser(
            self._tokenizer,
            markup,
            in_reasoning=rendered.in_reasoning,
            continues=conversation.continue_last,
            stop=stop,
        )

    def calls_grammar(self, tools: Sequence[ToolDefinition], choice: ToolChoice, *, free: bool) -> str:
        """See `ChatEncoding`."""
        return dsml_calls(tools, choice, self._tokenizer.control_id(DSML), free=free)

    def _pieces(self, conversation: Conversation) -> list[Piece]:
        try:
            prompt = self._renderer.render_conversation(self._translated(conversation))
        except (ValueError, TypeError) as error:
            raise ChatError(f"the conversation cannot be rendered: {error}") from error
        except RecursionError as error:
            raise ChatError("a tool, a schema or a call is nested too deeply; write it with fewer levels") from error
        except OverflowError as error:
            raise ChatError(f"a tool or a schema has a number that cannot be told to the model: {error}") from error
        text, pieces, place = prompt.prompt, [], 0
        for start, end in prompt.special_ranges:
            pieces += [Piece(text[place:start]), Piece(text[start:end], control=True)]
            place = end
        pieces.append(Piece(text[place:]))
        return [piece for piece in pieces if piece.text]

    def _translated(self, conversation: Conversation) -> deepseek_recipe.Conversation:
        library, format_ = self._library, conversation.response_format
        form: dict[str, Any] = {}
        if format_ is not None:
            schema = format_.schema
            form = {"response_format": "json_object"} if schema is None else {"response_schema": _clean_json(schema)}
        tools = [
            library.ToolDefinition(
                _clean(tool.name), _clean(tool.description), _clean_json(tool.parameters or _NOTHING)
            )
            for tool in conversation.tools
        ]
        thinks = conversation.thinking is not Thinking.OFF
        effort = self._efforts[conversation.thinking] if thinks else None
        messages = self._messages(conversation)
        return library.Conversation(messages, thinking_mode=thinks, tools=tools, reasoning_effort=effort, **form)

    def _messages(self, conversation: Conversation) -> list[deepseek_recipe.Message]:
        messages = list(conversation.messages)
        first = next((i for i, message in enumerate(messages) if not isinstance(message, SystemMessage)), len(messages))
        system = "\n\n".join(_clean(message.content) for message in messages[:first])
        rest = [self._message(message) for message in messages[first:-1]]
        rest += [self._message(message, conversation.continue_last) for message in messages[first:][-1:]]
        return [self._library.SystemMessage(system), *rest] if first else rest

    def _message(self, message: Message, unfinished: bool = False) -> deepseek_recipe.Message:
        library, content = self._library, _clean(message.content)
        if isinstance(message, AssistantMessage):
            calls = [
                library.ToolCall(call.id, _clean(call.name), _clean(call.arguments)) for call in message.tool_calls
            ]
            return library.AssistantMessage(content, _clean(message.reasoning) or None, calls or None, unfinished)
        if isinstance(message, ToolMessage):
            return library.ToolMessage(content, message.call_id)
        if isinstance(message, SystemMessage):
            content = f"<system-reminder>\n{content}\n</system-reminder>"
        return library.UserMessage(content)


_NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}}


class _Turns:
    """The assistant's turns among the pieces of a prompt, each brought to the official form."""

    def __init__(self, pieces: list[Piece], conversation: Conversation) -> None:
        said = [i for i, message in enumerate(conversation.messages) if isinstance(message, AssistantMessage)]
        if conversation.continue_last:
            said.pop()
        self.pieces: list[Piece] = []
        self.done: list[Turn] = []
        places = [i for i, piece in enumerate(pieces) if piece.control and piece.text == ASSISTANT]
        self.pieces += pieces[: places[0]]
        for number, place in enumerate(places[:-1]):
            message = conversation.messages[said[number]]
            assert isinstance(message, AssistantMessage)
            keeps = not conversation.drop_reasoning and conversation.thinking is not Thinking.OFF
            self._turn(said[number], pieces[place : places[number + 1]], message.reasoning if keeps else "")
        self.head = len(self.pieces)
        last = pieces[places[-1] :]
        self.pieces += last
        self.in_reasoning = Piece(THINK_START, True) in last and Piece(THINK_END, True) not in last

    def _turn(self, message: int, pieces: list[Piece], reasoning: str) -> None:
        start = len(self.pieces)
        end = pieces.index(Piece(EOS, True)) + 1
        head, said, after = pieces[:2], pieces[2:end], pieces[end:]
        if reasoning and head[1].text == THINK_END:
            head, said = [head[0], Piece(THINK_START, True)], [Piece(_clean(reasoning)), head[1], *said]
        said = [_spaced(piece) for piece in said]
        self.pieces += [*head, *said, *after]
        self.done.append(Turn(message, start, start + len(head) + len(said)))


def _spaced(piece: Piece) -> Piece:
    """A call without arguments has an empty line in the official form."""
    if not piece.control and _NO_ARGUMENTS.fullmatch(piece.text):
        return Piece(f"{piece.text[:-2]}\n</")
    return piece


def _check(conversation: Conversation) -> None:
    last = conversation.messages[-1] if conversation.messages else None
    if conversation.continue_last and not isinstance(last, AssistantMessage):
        raise ChatError("only a message of the assistant can be continued; the last message is of another role")


def _clean(text: str) -> str:
    """The library takes Unicode text; lone surrogates are none."""
    return _SURROGATES.sub("\ufffd", text) if _SURROGATES.search(text) else text


def _clean_json(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Mapping):
        return {_clean(key): _clean_json(entry) for key, entry in value.items()}
    return [_clean_json(entry) for entry in value] if isinstance(value, list | tuple) else value
