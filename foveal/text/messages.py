"""A conversation in our own words: what every chat API is mapped to, and what a chat encoding renders.

Nothing belongs to one API. The texts are plain: control strings in them stay text, whatever encoding renders them.
Arguments of tool calls are JSON texts, as a model writes them and a client returns them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias


class Thinking(enum.StrEnum):
    """How much a model may think before it answers. An encoding maps the levels to those that its model knows."""

    OFF = "off"
    LOW = "low"
    HIGH = "high"
    MAX = "max"


class ToolMode(enum.StrEnum):
    """Whether the model calls tools. To force one tool, name it in `ToolChoice.name`."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """mode: whether tools are called.   name: with REQUIRED, the one tool that may be called.
    parallel: whether one reply may hold several calls."""

    mode: ToolMode = ToolMode.AUTO
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, kw_only=True)
class ToolDefinition:
    """A tool that the model may call. `parameters` is a JSON schema of an object; None takes no arguments.
    `strict`: the arguments are held to the schema while they are written."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One call of a tool. `arguments` is a JSON text, an object when it is sound."""

    id: str
    name: str
    arguments: str = "{}"


@dataclass(frozen=True)
class SystemMessage:
    """Instructions of the operator. In the middle of a conversation they are rendered where they stand."""

    content: str


@dataclass(frozen=True)
class UserMessage:
    """What the user says."""

    content: str


@dataclass(frozen=True, kw_only=True)
class AssistantMessage:
    """What the model said: its reasoning (empty when there was none or when it was left out), content and calls."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ToolMessage:
    """What a tool answered. `name` is the tool's, where the client gave it; some templates want it."""

    call_id: str
    content: str
    name: str | None = None


Message: TypeAlias = SystemMessage | UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """The form that the content must have. `schema` None: any JSON object; else a JSON schema.
    `strict`: a schema that cannot be followed wholly is an error; else what cannot be followed is left out."""

    schema: Mapping[str, Any] | None = None
    strict: bool = True


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What is rendered.

    drop_reasoning: leave the reasoning of old turns out where the encoding has a rule for that; False keeps all.
    continue_last: the last message is the assistant's and unfinished; the model goes on with it.
    add_generation_prompt: end with what begins the assistant's turn (needless with `continue_last`).
    template_arguments: further variables of a Jinja template; other encodings ignore them.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    thinking: Thinking = Thinking.OFF
    response_format: ResponseFormat | None = None
    drop_reasoning: bool = True
    continue_last: bool = False
    add_generation_prompt: bool = True
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
