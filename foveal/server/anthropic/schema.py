"""Bodies of the Messages API. What is not named here is let through and ignored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from foveal.server.bodies import Json, Open
from foveal.server.openai.answer_schema import CitationAnswer


class Block(Open):
    """A block of content: text, thinking, a call or its result, a document."""

    type: str
    """`text`, `thinking`, `tool_use`, `tool_result`, `document` or `search_result`. A block of another kind is refused
    unless it has a `text`."""
    text: str | None = None
    """Of a `text`."""
    thinking: str | None = None
    """Of a `thinking`: what the assistant thought before it answered."""
    id: str | None = None
    """Of a `tool_use`: what its result calls it by."""
    name: str | None = None
    """Of a `tool_use`: the tool."""
    input: Json | None = None
    """Of a `tool_use`: the arguments. Default: none."""
    tool_use_id: str | None = None
    """Of a `tool_result`: the call whose result it is."""
    content: str | list[Any] | None = None
    """Of a `tool_result` or `search_result`: a text, or blocks. A block of a result that is no text is named to the
    model, and not read."""
    is_error: bool | None = None
    """Of a `tool_result`: whether the call failed. The model reads `Error:` before it then. Default: false."""
    source: Json | None = None
    """Of a `document`: `{"type": "text", "data": …}`. Others are refused."""


class Message(Open):
    """One message. A system message may stand anywhere."""

    role: Literal["user", "assistant", "system"]
    """Who says it. A last message of the assistant is continued, without thinking."""
    content: str | list[Block]
    """A text, or blocks."""


class Tool(Open):
    """A tool: the client's own, with a schema, or one that a server would run, which is let through and not run."""

    name: str = Field(min_length=1, max_length=256)
    """What the model calls it by."""
    type: str | None = None
    """`custom` for the client's own. Others without an `input_schema` are left out."""
    description: str | None = None
    """What it does, for the model."""
    input_schema: Json | None = None
    """The JSON schema of its arguments."""
    strict: bool | None = None
    """Whether the arguments are held to the schema; one that cannot be followed is refused then. Default: false."""


class ToolChoice(Open):
    """Whether and which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    """As the model likes, at least one, the one named, or none."""
    name: str | None = None
    """The tool, for `tool`. One that is not among the tools is refused."""
    disable_parallel_tool_use: bool | None = None
    """Whether a reply holds one call at most. Default: false."""


class Thinking(Open):
    """Whether the model thinks first."""

    type: Literal["enabled", "adaptive", "disabled"]
    """`enabled` and `adaptive` think as much as `effort` says, or the server's `--thinking`, or else much."""


class OutputConfig(Open):
    """How much effort, and in which form."""

    effort: str | None = None
    """`minimal`, `low`, `medium`, `high`, `xhigh` or `max`; without `thinking` it is not looked at. Default: the
    server's `--thinking`."""
    format: Json | None = None
    """`{"type": "json_schema", "schema": …}`: the text is JSON by the schema; what cannot be followed is left out of
    it. Default: any text."""


class CountRequest(Open):
    """`POST /v1/messages/count_tokens`."""

    model: str | None = None
    """A model of `/v1/models`, or `model@memory`: then the prompt begins with that memory. Default: the model that is
    served, where it is the only one."""
    messages: list[Message] = Field(min_length=1)
    """The conversation so far. What is longer than the context is refused, never cut."""
    system: str | list[Block] | None = None
    """What goes before the conversation. Default: nothing."""
    tools: list[Tool] | None = None
    """Tools that may be called. Default: none."""
    tool_choice: ToolChoice | None = None
    """Whether and which tools are called. Default: `auto`."""
    thinking: Thinking | None = None
    """Whether the model thinks first. Default: the server's `--thinking` (off)."""
    output_config: OutputConfig | None = None
    """How much effort, and in which form. Default: any form."""
    output_format: Json | None = None
    """`output_config.format` by an earlier name, read where that is not given."""
    memory: str | None = None
    """The memory with which the prompt begins; a count leaves it out. It overrides one in `model`. Default: none."""


class MessagesRequest(CountRequest):
    """`POST /v1/messages`."""

    max_tokens: int | None = Field(default=None, ge=0)
    """Most tokens of the reply; 0 only reads the prompt. Default: the server's `--output` (4096). What is beyond
    `--max-output`, the key's limit or the context is cut to them. A reply that reaches it ends with `max_tokens`."""
    stop_sequences: list[str] | None = None
    """Texts at which the reply ends; they are no part of it. Default: none. More than 16 are refused."""
    stream: bool | None = False
    """Whether the reply comes as server-sent events while it is written."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """How freely tokens are chosen: 0 takes the likeliest each time. Default: the server's `--temperature` (1)."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Choose among the likeliest tokens that have this probability together; 0 is the likeliest alone. Default: the
    server's `--top-p` (1, all)."""
    top_k: int | None = Field(default=None, ge=-1)
    """Choose among so many of the likeliest tokens; 0 and -1 are all. Default: all."""
    citations: bool | None = None
    """Whether the answer names the lines of the memory that it came from. Default: false."""


class MessageUsage(Open):
    """Tokens of a message. The prompt has the sum of the three kinds of input."""

    input_tokens: int
    """Tokens of the prompt that were read."""
    cache_creation_input_tokens: int
    """Always 0: what is kept costs nothing more."""
    cache_read_input_tokens: int
    """Tokens of the prompt that were known, those of its memory included, and not read again."""
    output_tokens: int
    """Tokens of the reply, thinking and calls included."""
    cache_miss: Json | None = None
    """Why not more of the prompt was known: `reason`, `position` (its first token that was not), and `message` (index
    and role) where that token stands. Null when all was known."""
    cost: float | None = None
    """What the answer cost, where the server was started with `--price` for the model."""


class MessageAnswer(Open):
    """A reply."""

    id: str
    """A name that is given once."""
    type: Literal["message"]
    """Always `message`."""
    role: Literal["assistant"]
    """Always `assistant`."""
    model: str
    """The model as the request named it."""
    content: list[Json]
    """Blocks: `thinking`, `text` and `tool_use`, in this order."""
    stop_reason: str | None
    """`end_turn`, `stop_sequence`, `tool_use`, or `max_tokens` (a limit of tokens or of time)."""
    stop_sequence: str | None
    """The text of `stop_sequences` at which it ended, where it did."""
    usage: MessageUsage
    """Tokens of the prompt and of the reply."""
    citations: list[CitationAnswer] | None = None
    """Lines of the memory that the answer came from, where they were asked for."""


class CountAnswer(Open):
    """How many tokens a prompt has."""

    input_tokens: int
    """Tokens of the conversation, its tools and the beginning of the reply."""


class AnthropicErrorBody(Open):
    """What was wrong, and what to do about it."""

    type: str
    """The kind of error, such as `invalid_request_error` or `overloaded_error`."""
    message: str
    """For people. It names what was wrong and what would be right."""


class AnthropicError(Open):
    """An error, in the Messages API's shape."""

    type: Literal["error"]
    """Always `error`."""
    error: AnthropicErrorBody
    """What was wrong."""
    request_id: str
    """The request's name in the server's log and in the header `request-id`."""
