"""The chat template of a model's folder: any model's encoding that is not DeepSeek's.

A template only joins strings, so a control string in a user's text would become control; such strings are broken before
and mended after (`control_strings`). Templates that look into a text still do what they do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foveal.text.calls import strict_json
from foveal.text.chat import ChatError, ChatUnsupported, Rendered, Turn, dumped
from foveal.text.control_strings import ControlStrings, unused_character
from foveal.text.jinja import Template
from foveal.text.json_grammar import json_calls
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
    UserMessage,
)
from foveal.text.pieces import Piece, PieceEncoder
from foveal.text.reply import Markup, ReplyParser, ToolSyntax
from foveal.text.source import Alphabet
from foveal.text.specials import THINK_END, THINK_START
from foveal.text.template_files import Templates
from foveal.text.tokenizer import Tokenizer
from foveal.text.tools import MARKS, SYNTAXES, tool_format

_PROBE = "foveal"
_WORDS = frozenset(("system", "user", "assistant", "tool", "function"))
"""What templates compare with."""


class TemplateEncoding:
    """A model's own chat template."""

    gap_after_reasoning = True

    def __init__(self, tokenizer: Tokenizer, templates: Templates, *, tool_format: str | None = None) -> None:
        """Raises `ChatUnsupported` for a template that cannot be compiled, or an unknown tool format."""
        self._tokenizer, self._files = tokenizer, templates
        self._plain, self._tooled = Template(templates.default), Template(templates.tools)
        self._format = _known(tool_format, templates.tools)
        self._encoder = PieceEncoder(tokenizer)
        self._control = ControlStrings(tokenizer)
        thinks = any(
            mark in templates.default + templates.tools for mark in (THINK_START, THINK_END, "enable_thinking")
        )
        marks = [*((THINK_START, THINK_END) if thinks else ()), *MARKS.get(self._format or "", ())]
        control = tokenizer.control_tokens
        hidden = tokenizer.special_ids | {control[mark] for mark in marks if mark in control}
        self._alphabet = Alphabet(tokenizer, hidden)
        self._think = (self._alphabet.tag(THINK_START), self._alphabet.tag(THINK_END)) if thinks else None
        self._heads = {thinking: self._probe_head(thinking) for thinking in Thinking}
        self._turn_end = self._probe_end()
        ends = [tokenizer.eos_id, *templates.stop_ids]
        ends += [tokenizer.control_id(self._turn_end)] if self._turn_end is not None else []
        self.stop_tokens: tuple[int, ...] = tuple(dict.fromkeys(ends))
        self.name = f"template ({self._format})" if self._format else "template"
        self.thinking_levels: tuple[str, ...] = (Thinking.OFF, Thinking.HIGH) if thinks else (Thinking.OFF,)
        self.think_end = THINK_END if thinks else None

    # ------------------------------------------------------------------ the prompt

    def render(self, conversation: Conversation) -> Rendered:
        """See `ChatEncoding`. The response format is not rendered: templates have no word for it."""
        self._check_tools(conversation.tools)
        variables = self._variables(conversation)
        breaker = unused_character(json.dumps(variables, ensure_ascii=False, default=str))
        variables = _map_strings(variables, lambda text: self._control.broken(text, breaker)) | self._files.tokens
        text = self._run(self._tooled if conversation.tools else self._plain, variables)
        if conversation.continue_last:
            text = _cut_after_last(text, variables["messages"])
        pieces = self._control.split(text, breaker)
        ids, starts = self._encoder.encode(pieces)
        turns, head = self._locate(pieces, conversation)
        located = tuple(Turn(turn.message, starts[turn.start], starts[turn.end]) for turn in turns)
        generates = conversation.add_generation_prompt or conversation.continue_last
        return Rendered(ids, located, starts[head], generates and self._leaves_open(pieces[head:] or pieces[-3:]))

    def _run(self, template: Template, variables: dict[str, Any]) -> str:
        """The rendered text. Arguments of calls are objects; a template that cannot take them gets JSON texts."""
        try:
            return template(variables)
        except ChatError:
            functions = [call["function"] for said in variables["messages"] for call in said.get("tool_calls", ())]
            if all(isinstance(function["arguments"], str) for function in functions):
                raise
            for function in functions:
                if not isinstance(function["arguments"], str):
                    function["arguments"] = dumped(function["arguments"])
            return template(variables)

    def parser(self, conversation: Conversation, rendered: Rendered, *, stop: Sequence[str] = ()) -> ReplyParser:
        """See `ChatEncoding`. Calls are looked for if the conversation has tools and does not forbid them."""
        calls = bool(conversation.tools) and conversation.tool_choice.mode is not ToolMode.NONE
        markup = Markup(
            alphabet=self._alphabet,
            think=self._think,
            tools=self._syntax(conversation.tools) if calls else None,
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
        self._check_tools(tools)
        return json_calls(self._format or "", tools, choice, self._tokenizer.control_tokens, free=free)

    def _syntax(self, tools: Sequence[ToolDefinition]) -> ToolSyntax:
        self._check_tools(tools)
        return SYNTAXES[self._format or ""](self._alphabet, [tool.name for tool in tools])

    def _check_tools(self, tools: Sequence[ToolDefinition]) -> None:
        if tools and "tools" not in self._files.tools:
            raise ChatUnsupported("the model's chat template knows no tools; leave `tools` out")
        if tools and self._format is None:
            raise ChatUnsupported(f"the form of the model's tool calls is not known; known are {', '.join(SYNTAXES)}")

    def _variables(self, conversation: Conversation) -> dict[str, Any]:
        thinks = conversation.thinking is not Thinking.OFF
        return {
            **conversation.template_arguments,
            "messages": [_as_dict(message) for message in conversation.messages],
            "tools": [_tool(tool) for tool in conversation.tools] or None,
            "documents": None,
            "add_generation_prompt": conversation.add_generation_prompt and not conversation.continue_last,
            "enable_thinking": thinks,
            "thinking": thinks,
            **({"reasoning_effort": str(conversation.thinking)} if thinks else {}),
        }

    # ------------------------------------------------------------------ the assistant's turns

    def _locate(self, pieces: Sequence[Piece], conversation: Conversation) -> tuple[list[Turn], int]:
        """The assistant's finished turns as ranges of pieces, and where the head of the next one begins.

        Without turns if the prompt has not exactly one head and one end for each.
        """
        said = [i for i, message in enumerate(conversation.messages) if isinstance(message, AssistantMessage)]
        if conversation.continue_last:
            said.pop()
        generates = conversation.add_generation_prompt or conversation.continue_last
        head = self._heads[conversation.thinking]
        if head is None or self._turn_end is None:
            return [], len(pieces)
        ends = [i + 1 for i, piece in enumerate(pieces) if piece == Piece(self._turn_end, control=True)]
        starts = (
            _occurrences(pieces, head) if head else [self._after_input(pieces, end - 1) for end in ends[: len(said)]]
        )
        if head == [] and generates:
            starts.append(self._after_input(pieces, len(pieces)))
        if len(starts) != len(said) + generates:
            return [], len(pieces)
        turns = []
        for message, start in zip(said, starts, strict=False):
            end = next((end for end in ends if end > start), None)
            if end is None:
                return [], len(pieces)
            turns.append(Turn(message, start, end))
        return turns, starts[-1] if generates else len(pieces)

    def _after_input(self, pieces: Sequence[Piece], end: int) -> int:
        """Where a turn without a head begins: after the last control token that the model does not write itself."""
        own = {THINK_START, THINK_END, *MARKS.get(self._format or "", ())}
        return next((i + 1 for i in range(end - 1, -1, -1) if pieces[i].control and pieces[i].text not in own), 0)

    def _leaves_open(self, head: Sequence[Piece]) -> bool:
        """Whether reasoning is open at the end of a prompt that ends with `head`."""
        if self._think is None:
            return False
        if THINK_START in self._tokenizer.control_tokens:
            marks = [piece.text for piece in head if piece.control and piece.text in (THINK_START, THINK_END)]
            return bool(marks) and marks[-1] == THINK_START
        text = "".join(piece.text for piece in head)
        return text.rfind(THINK_START) > text.rfind(THINK_END)

    def _probe_head(self, thinking: Thinking) -> list[Piece] | None:
        """What begins a turn in every case, before any thinking mark; None if it cannot be told from text."""
        thinks = thinking is not Thinking.OFF
        asked = self._probe([{"role": "user", "content": _PROBE}], thinks, generation=False)
        answering = self._probe([{"role": "user", "content": _PROBE}], thinks, generation=True)
        if asked is None or answering is None or not answering.startswith(asked):
            return None
        head = [piece for piece in self._control.split(answering[len(asked) :].split(THINK_START)[0]) if piece.text]
        return head if not head or head[0].control else None

    def _probe_end(self) -> str | None:
        """The control token that ends a turn of the assistant."""
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        text = self._probe(said, False, generation=False)
        if text is None or _PROBE not in text:
            return None
        return self._control.search(text, text.rindex(_PROBE))

    def _probe(self, messages: list[dict[str, str]], thinks: bool, *, generation: bool) -> str | None:
        variables: dict[str, Any] = {**self._files.tokens, "messages": messages, "tools": None, "documents": None}
        variables |= {"add_generation_prompt": generation, "enable_thinking": thinks, "thinking": thinks}
        try:
            return self._plain(variables)
        except ChatError:
            return None


def _known(name: str | None, template: str) -> str | None:
    if name is not None and name not in SYNTAXES:
        raise ChatUnsupported(f"the tool format {name!r} is not known; known are {', '.join(SYNTAXES)}")
    return name or tool_format(template)


def _occurrences(pieces: Sequence[Piece], head: list[Piece]) -> list[int]:
    """Where `head` stands among the pieces; its last piece may go on."""
    last = len(head) - 1
    return [
        place
        for place in range(len(pieces) - last)
        if list(pieces[place : place + last]) == head[:last] and _goes_on(pieces[place + last], head[last])
    ]


def _goes_on(piece: Piece, beginning: Piece) -> bool:
    return piece.control == beginning.control and piece.text.startswith(beginning.text)


def _cut_after_last(text: str, messages: list[dict[str, Any]]) -> str:
    """The prompt up to the end of the last message's content."""
    for said in (messages[-1]["content"], messages[-1]["content"].strip()):
        if said and (place := text.rfind(said)) >= 0:
            return text[: place + len(said)]
    raise ChatError("the last message cannot be continued: it has no content, or the template changes it")


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return value if value in _WORDS else change(value)
    if isinstance(value, Mapping):
        return {change(key): _map_strings(entry, change) for key, entry in value.items()}
    return [_map_strings(entry, change) for entry in value] if isinstance(value, list | tuple) else value


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as templates know it; arguments of calls as objects."""
    match message:
        case SystemMessage(content):
            return {"role": "system", "content": content}
        case UserMessage(content):
            return {"role": "user", "content": content}
        case ToolMessage():
            name = {"name": message.name} if message.name else {}
            return {"role": "tool", "tool_call_id": message.call_id, "content": message.content, **name}
    said: dict[str, Any] = {"role": "assistant", "content": message.content}
    if message.reasoning:
        said["reasoning_content"] = message.reasoning
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return said


def _arguments(text: str) -> Any:
    try:
        value = strict_json(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text
