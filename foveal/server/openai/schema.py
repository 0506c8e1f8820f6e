"""Bodies of requests to OpenAI's APIs. What is not named here is let through and ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from foveal.server.bodies import Json, Open


class StreamOptions(Open):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    """Whether a last chunk tells the usage. Default: false."""
    continuous_usage_stats: bool | None = None
    """With `include_usage`, whether each chunk of a chat tells the usage so far. Default: false."""


class ContentPart(Open):
    """A part of a message. Only texts can be read."""

    type: str
    """The kind of part. A part with a text is read whatever its kind is called; one without a text is refused."""
    text: str | None = None
    """The text."""
    refusal: str | None = None
    """What an assistant said instead of an answer. It is read where there is no `text`."""


Content = str | list[ContentPart] | None


class FunctionCall(Open):
    """A call that the assistant made."""

    name: str
    """Of the function."""
    arguments: str | Json | None = "{}"
    """A JSON object, or the text of one. Default: no arguments."""


class CalledTool(Open):
    """A call with its name for the answer."""

    id: str | None = None
    """What the message with the result calls it by (`tool_call_id`). Default: a name by its place."""
    type: str | None = "function"
    """Taken and not looked at: all calls are of functions."""
    function: FunctionCall
    """What was called."""


class ChatMessage(Open):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Who says it. `developer` is read as `system`, `function` as `tool`."""
    content: Content = None
    """A text, or parts, which are joined by line breaks. Default: none."""
    name: str | None = None
    """The tool whose result this is. Other messages are read without it."""
    tool_calls: list[CalledTool] | None = None
    """Calls that the assistant made in this message."""
    tool_call_id: str | None = None
    """The call whose result this is. Default: `name`."""
    reasoning_content: str | None = None
    """What the assistant thought before it answered. It may be left out."""
    reasoning: str | None = None
    """The same by another name, read where there is no `reasoning_content`."""
    prefix: bool | None = None
    """On a last message of the assistant: go on with it, as with `continue_final_message`. Default: false."""


class Function(Open):
    """A function that may be called."""

    name: str = Field(min_length=1, max_length=256)
    """What the model calls it by."""
    description: str | None = None
    """What it does, for the model."""
    parameters: Json | None = None
    """The JSON schema of its arguments. Default: any object."""
    strict: bool | None = None
    """Whether the arguments are held to the schema; one that cannot be followed is refused then. Default: false."""


class ChatTool(Open):
    """A tool of a chat."""

    type: str = "function"
    """The kind of tool. Tools without a `function` are refused."""
    function: Function | None = None
    """What may be called."""


class SchemaFormat(Open):
    """A JSON schema that the content follows."""

    name: str | None = None
    """Taken and not used."""
    schema_: Json | None = Field(default=None, alias="schema")
    """The schema; it is needed."""
    strict: bool | None = None
    """Whether a schema that cannot be followed whole is refused; else what cannot be followed is left out of it.
    Default: false."""


class ChatFormat(Open):
    """The form of the content."""

    type: Literal["text", "json_object", "json_schema"]
    """Any text, any JSON object, or JSON by a schema."""
    json_schema: SchemaFormat | None = None
    """The schema, for `json_schema`."""


class Sampled(Open):
    """Fields that chats and completions share."""

    model: str | None = None
    """A model of `/v1/models`, or `model@memory`: then the prompt begins with that memory. Default: the model that is
    served, where it is the only one."""
    stream: bool | None = False
    """Whether the answer comes as server-sent events while it is written."""
    stream_options: StreamOptions | None = None
    """What the stream tells beside the text. Without `stream` nothing."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Most tokens of a reply; 0 only reads the prompt. Default: the server's `--output` (4096) for chats, 16 for
    completions. What is beyond `--max-output`, the key's limit or the context is cut to them. A reply that reaches it
    ends with `length`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """How freely tokens are chosen: 0 takes the likeliest each time. Default: the server's `--temperature` (1)."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Choose among the likeliest tokens that have this probability together; 0 is the likeliest alone. Default: the
    server's `--top-p` (1, all)."""
    top_k: int | None = Field(default=None, ge=-1)
    """Choose among so many of the likeliest tokens; 0 and -1 are all. Default: all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Choose among the tokens that are at least so many times as likely as the likeliest. Default: 0, all."""
    n: int | None = Field(default=None, ge=1)
    """Replies to one prompt, which is read once. Default: 1. More than 16 are refused."""
    stop: str | list[str] | None = None
    """Texts at which a reply ends; they are no part of it. In a chat they are looked for in the content alone. Default:
    none. More than 16 are refused."""
    stop_token_ids: list[int] | None = None
    """Token ids at which a reply ends, beside the model's own. Default: none."""
    ignore_eos: bool | None = None
    """Whether a reply goes on behind the token that ends a text. Default: false."""
    seed: int | None = Field(default=None, ge=-(2**63) + 1024, lt=2**63 - 1024)
    """The same seed makes the same choices; reply number i of `n` has seed + i. Default: another one each time."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from a token's logit for each time that it stands in the reply. Default: 0."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from the logits of all tokens that stand in the reply. Default: 0."""
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    """Divides the logits of tokens that stand in the prompt or the reply, and multiplies those below 0. Default: 1."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Token id to what is added to its logit. An id that the model lacks is refused. Default: nothing."""
    user: str | None = None
    """Taken and not used."""
    memory: str | None = None
    """The memory with which the prompt begins. It overrides one in `model`. Default: none."""
    citations: bool | None = None
    """Whether the answer names the lines of the memory that it came from. Default: false. Without a memory there are
    none."""


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    """The chat so far. What is longer than the context is refused, never cut."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """`max_tokens` by another name. Where both are given, this one counts."""
    tools: list[ChatTool] | None = None
    """Functions that may be called. Default: none."""
    tool_choice: str | Json | None = None
    """`auto`, `none`, `required`, or the tool that has to be called. Default: `auto`."""
    parallel_tool_calls: bool | None = None
    """Whether one reply may hold several calls. Default: true."""
    response_format: ChatFormat | None = None
    """The form to which the content is held. Default: any text."""
    logprobs: bool | None = None
    """Whether the log-probabilities of the content's tokens are told: the model's own, before all penalties. Default:
    false."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many alternatives to each token are told. It needs `logprobs`. Default: 0."""
    reasoning_effort: str | None = None
    """How much the model thinks: `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`. Default: the server's
    `--thinking` (off)."""
    thinking: Json | None = None
    """DeepSeek's switch: `{"type": "enabled"}`, `adaptive` or `disabled`. Default: as `reasoning_effort` says."""
    chat_template_kwargs: Json | None = None
    """Arguments of the model's chat template. `enable_thinking` and `thinking` switch thinking for every model."""
    continue_final_message: bool | None = None
    """Whether a last message of the assistant is continued, instead of answered. Default: false."""
    attention: bool | None = None
    """Whether each token of the content tells where in the memory it looked. Default: false."""


class CompletionRequest(Sampled):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    """A text or token ids, or a list of either. An empty prompt is refused, and so are more than 4,096, and one that is
    longer than the context."""
    echo: bool | None = False
    """Whether the answer begins with the prompt. With `logprobs` the prompt's tokens are scored, too."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Tell the log-probability of each token and of so many alternatives. Default: of none."""
    suffix: str | None = None
    """What comes behind the completion. It cannot be done: anything but an empty text is refused."""
    best_of: int | None = None
    """It cannot be done: anything but the value of `n` is refused."""
    attention: bool | None = None
    """It cannot be done for completions: true is refused."""


class TokenizeRequest(Open):
    """`POST /tokenize`: a text, or a chat as it would be rendered."""

    model: str | None = None
    """A model of `/v1/models`. Default: the model that is served, where it is the only one."""
    prompt: str | None = None
    """The text. One of `prompt` and `messages` is needed."""
    messages: list[ChatMessage] | None = None
    """The chat. Where there is a `prompt` too, the chat counts."""
    tools: list[ChatTool] | None = None
    """The tools of the chat. Default: none."""
    add_special_tokens: bool | None = None
    """Taken and not used: nothing is added to a text, and a chat has what its form demands."""
    add_generation_prompt: bool | None = True
    """Whether the beginning of the assistant's next turn stands at the end of the chat."""


class DetokenizeRequest(Open):
    """`POST /detokenize`."""

    model: str | None = None
    """A model of `/v1/models`. Default: the model that is served, where it is the only one."""
    tokens: list[int]
    """Token ids. One that the model lacks is refused."""
