"""Bodies of the Responses API. What is not named here is let through and ignored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foveal.server.bodies import Json, Open
from foveal.server.openai.answer_schema import CitationAnswer


class Reasoning(Open):
    """How much the model thinks."""

    effort: str | None = None
    """`none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`. Default: the server's `--thinking` (off)."""
    summary: str | None = None
    """Taken and not used: reasoning is told whole, as its own summary."""


class TextSettings(Open):
    """The form of the text."""

    format: Json | None = None
    """`{"type": "text"}`, `json_object`, or `json_schema` with a `schema`. Default: any text."""


class ResponseRequest(Open):
    """`POST /v1/responses`."""

    model: str | None = None
    """A model of `/v1/models`, or `model@memory`: then the prompt begins with that memory. Default: the model that is
    served, where it is the only one."""
    input: str | list[Json] | None = None
    """A text, or items: messages, reasoning, calls and their results. Items of other kinds are left out. It is needed
    unless there is a `previous_response_id`."""
    instructions: str | None = None
    """What goes before the conversation, in this response alone. Default: nothing."""
    stream: bool | None = False
    """Whether the response comes as server-sent events while it is written."""
    store: bool | None = True
    """Whether the response is kept, for 30 days."""
    previous_response_id: str | None = None
    """The stored response behind which this one goes on; it stays as it was. One that is not there is refused (404)."""
    include: list[str] | None = None
    """What is told besides: `message.output_text.logprobs`, `reasoning.encrypted_content`. Others are ignored."""
    tools: list[Json] | None = None
    """Tools of type `function`, `custom` or `namespace`. Those that a server would run itself are left out. Default:
    none."""
    tool_choice: str | Json | None = None
    """`auto`, `none`, `required`, or the tool that has to be called. Default: `auto`."""
    parallel_tool_calls: bool | None = None
    """Whether one response may hold several calls. Default: true."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the response. Default: the server's `--output` (4096). What is beyond `--max-output`, the key's
    limit or the context is cut to them. A response that reaches it is `incomplete`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """How freely tokens are chosen: 0 takes the likeliest each time. Default: the server's `--temperature` (1)."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Choose among the likeliest tokens that have this probability together; 0 is the likeliest alone. Default: the
    server's `--top-p` (1, all)."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from a token's logit for each time that it stands in the response. Default: 0."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from the logits of all tokens that stand in the response. Default: 0."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many alternatives to each token of the text are told. Default: 0."""
    reasoning: Reasoning | None = None
    """How much the model thinks. Default: as the server's `--thinking` says (off)."""
    text: TextSettings | None = None
    """The form of the text. Default: any."""
    metadata: Json | None = None
    """Taken, and told again with the response. Default: nothing."""
    background: bool | None = None
    """It cannot be done: true is refused."""
    conversation: str | Json | None = None
    """It cannot be done, and is refused: use `previous_response_id`."""
    prompt: str | Json | None = None
    """A template that is stored at the server. It cannot be done, and is refused: write out what it says."""
    memory: str | None = None
    """The memory with which the prompt begins. It overrides one in `model`. Default: none."""
    citations: bool | None = None
    """Whether the response names the lines of the memory that it came from. Default: false."""


class ResponseUsage(Open):
    """Tokens of a response."""

    input_tokens: int
    """Tokens of the prompt, those of its memory included."""
    input_tokens_details: Json
    """`cached_tokens`: how many of them were known and not read again."""
    output_tokens: int
    """Tokens of the output, reasoning and calls included."""
    output_tokens_details: Json
    """`reasoning_tokens`: how many of them are reasoning."""
    total_tokens: int
    """Both together."""
    cache_miss: Json | None = None
    """Why not more of the prompt was known: `reason`, `position` (its first token that was not), and `message` (index
    and role) where that token stands. Null when all was known."""
    cost: float | None = None
    """What the response cost, where the server was started with `--price` for the model."""


class ResponseAnswer(Open):
    """A response. It repeats most fields of its request."""

    id: str
    """A name that is given once; `previous_response_id` takes it."""
    object: Literal["response"]
    """Always `response`."""
    created_at: int
    """Seconds since 1970."""
    status: str
    """`completed`, `incomplete` (a limit of tokens or of time), `failed`, or `in_progress` in a stream."""
    error: Json | None
    """`code` and `message` of what went wrong; null where nothing did."""
    incomplete_details: Json | None
    """`reason` of an incomplete response; null for others."""
    model: str
    """The model as the request named it."""
    output: list[Json]
    """Items: `reasoning`, `message`, `function_call` and `custom_tool_call`, in the order in which they came."""
    usage: ResponseUsage | None
    """Tokens of the prompt and of the output; null until it has ended."""
    citations: list[CitationAnswer] | None = None
    """Lines of the memory that the text came from, where they were asked for and there are any."""


class ItemsAnswer(Open):
    """The items of a request, in one page."""

    object: Literal["list"]
    """Always `list`."""
    data: list[Json]
    """The items, in their order."""
    has_more: bool
    """Always false."""
    first_id: str | None
    """The name of the first one; null where there is none."""
    last_id: str | None
    """The name of the last one; null where there is none."""


class DeletedResponseAnswer(Open):
    """A stored response that was deleted."""

    id: str
    """Its name."""
    object: Literal["response"]
    """Always `response`."""
    deleted: Literal[True]
    """Always true."""
