"""Answers of OpenAI's APIs, as /openapi.json tells of them."""

from __future__ import annotations

from typing import Literal

from foveal.server.bodies import Json, Open


class ErrorBody(Open):
    """What was wrong, and what to do about it."""

    message: str
    """For people. It names what was wrong and what would be right."""
    type: str
    """The kind of error, such as `invalid_request_error` or `rate_limit_error`."""
    param: str | None
    """The field of the request that was wrong, where it was one."""
    code: str | None
    """For programs, such as `model_not_found` or `context_length_exceeded`."""


class ErrorAnswer(Open):
    """An error."""

    error: ErrorBody
    """What was wrong."""


class UsageAnswer(Open):
    """Tokens of an answer."""

    prompt_tokens: int
    """Tokens of the prompt, those of its memory included."""
    completion_tokens: int
    """Tokens of all replies, reasoning and calls included."""
    total_tokens: int
    """Both together."""
    prompt_tokens_details: Json | None = None
    """`cached_tokens`: how many of the prompt's tokens were known and not read again."""
    completion_tokens_details: Json | None = None
    """`reasoning_tokens`: how many tokens of the replies are reasoning."""
    cache_miss: Json | None = None
    """Why not more of the prompt was known: `reason`, `position` (its first token that was not), and `message` (index
    and role) where that token stands. Null when all was known."""
    cost: float | None = None
    """What the answer cost, where the server was started with `--price` for the model."""


class CitationAnswer(Open):
    """Lines of a memory's source that an answer came from."""

    path: str
    """The file, as the memory names it."""
    first_line: int
    """From 1."""
    last_line: int
    """It belongs to the lines."""
    share: float
    """How much of the attention on the memory went to these lines, from 0 to 1."""
    outdated: bool
    """Whether these are lines of an earlier version of the file, which the memory has beside the present one."""
    sha256: str
    """The digest of the file's lines as the memory read them, in hexadecimal digits."""
    stale: bool | None
    """Whether the file is another one now. Null where it cannot be looked at."""


class SharesAnswer(Open):
    """Shares of attention of equally long stretches of tokens."""

    first: int = 0
    """The first token of the first stretch, from the beginning of the memory."""
    span: int
    """Tokens of a stretch."""
    share: list[float]
    """The share of each stretch, from 0 to 1."""


class LookAnswer(Open):
    """Where a token of a reply looked, in tokens from the beginning of the memory. Shares are of its whole attention;
    what is missing to 1 went to the sinks."""

    text: str
    """The token's text. A character of several tokens comes with its last one."""
    position: int
    """The token that looked: the one before it."""
    window: SharesAnswer
    """The raw window, in stretches of 4 tokens."""
    picks: list[tuple[int, float]]
    """Entries of CSA, at most 48: the first of their 4 tokens and their share, the heaviest first."""
    overview: SharesAnswer
    """Entries of HCA over the whole memory, in at most 256 stretches."""


class ReplyAnswer(Open):
    """The message of a reply."""

    role: Literal["assistant"]
    """Always `assistant`."""
    content: str | None
    """The text. Null when there are calls alone."""
    reasoning_content: str | None = None
    """What the model thought first, where it did."""
    tool_calls: list[Json] | None = None
    """Calls, where there are any: `id`, `type` (`function`) and `function` with `name` and `arguments`, a JSON text."""
    citations: list[CitationAnswer] | None = None
    """Lines that the answer came from, where they were asked for."""
    attention: list[LookAnswer] | None = None
    """Where each token of the content looked, where that was asked for."""


class ChoiceAnswer(Open):
    """One reply of a chat completion."""

    index: int
    """From 0, below `n`."""
    message: ReplyAnswer
    """What was said."""
    logprobs: Json | None = None
    """`content`: the content's tokens with log-probabilities, bytes and alternatives. Null where they were not asked
    for."""
    finish_reason: str
    """`stop` (it ended by itself, or at a stop text), `tool_calls`, or `length` (a limit of tokens or of time)."""


class ChatAnswer(Open):
    """A chat completion."""

    id: str
    """A name that is given once."""
    object: Literal["chat.completion"]
    """Always `chat.completion`."""
    created: int
    """Seconds since 1970."""
    model: str
    """The model as the request named it."""
    choices: list[ChoiceAnswer]
    """The replies, `n` of them."""
    usage: UsageAnswer
    """Tokens of the prompt and of all replies."""


class CompletionChoiceAnswer(Open):
    """One completion."""

    index: int
    """From 0: `n` for the first prompt, then `n` for the second, and so on."""
    text: str
    """What follows the prompt; with `echo` the prompt goes before it."""
    logprobs: Json | None
    """`tokens`, `token_logprobs`, `top_logprobs` and `text_offset`, one of each for every token. Null where they were
    not asked for."""
    finish_reason: str
    """`stop` (it ended by itself, or at a stop text), or `length` (a limit of tokens or of time)."""
    citations: list[CitationAnswer] | None = None
    """Lines of the memory that the text came from, where they were asked for. A stream tells them in its last piece."""


class CompletionAnswer(Open):
    """A text completion."""

    id: str
    """A name that is given once."""
    object: Literal["text_completion"]
    """Always `text_completion`."""
    created: int
    """Seconds since 1970."""
    model: str
    """The model as the request named it."""
    choices: list[CompletionChoiceAnswer]
    """The completions: `n` for each prompt."""
    usage: UsageAnswer
    """Tokens of all prompts and completions."""


class ModelAnswer(Open):
    """A model, for the clients of both vendors."""

    id: str
    """The name by which requests ask for it."""
    object: Literal["model"]
    """Always `model`."""
    created: int
    """When the server opened it, in seconds since 1970."""
    owned_by: str
    """Always `foveal`."""
    type: Literal["model"]
    """Always `model`."""
    display_name: str
    """The same as `id`."""
    created_at: str
    """When the server opened it, in ISO 8601, UTC."""
    max_model_len: int
    """Tokens that a prompt and its reply may have together."""


class ModelsAnswer(Open):
    """All models, in one page."""

    object: Literal["list"]
    """Always `list`."""
    data: list[ModelAnswer]
    """Models and plain aliases that the key may use."""
    has_more: bool
    """Always false."""
    first_id: str | None
    """The name of the first one; null where there is none."""
    last_id: str | None
    """The name of the last one; null where there is none."""


class TokensAnswer(Open):
    """Token ids."""

    tokens: list[int]
    """The ids, in order."""
    count: int
    """How many they are."""
    max_model_len: int
    """Tokens that a prompt and its reply may have together."""


class TextAnswer(Open):
    """The text of token ids."""

    prompt: str
    """The text. Bytes that are no text become U+FFFD."""


class TokenizerAnswer(Open):
    """What evaluators ask of a tokenizer."""

    bos_token: str
    """The token that begins a text; empty where the model has none."""
    eos_token: str
    """The token that ends a text; empty where the model has none."""
    pad_token: str | None
    """The token that fills a batch; null where the model has none."""
    chat_template: str | None
    """Always null: `/tokenize` renders chats."""
    vocab_size: int
    """Token ids are below it."""
