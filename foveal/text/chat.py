"""Chats in the model's own form: one protocol, whatever the model.

Control strings in what people, tools and models write stay plain text; and a rendered prompt knows where each turn of
the assistant stands in it, so that sampled ids can take the place of re-tokenised text (`replay`).

    encoding = chat_encoding(folder, tokenizer)
    rendered = encoding.render(conversation)
    parser = encoding.parser(conversation, rendered)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from foveal.errors import FovealError, ParameterError
from foveal.text.messages import Conversation, ToolChoice, ToolDefinition
from foveal.text.reply import ReplyParser
from foveal.text.specials import DSML
from foveal.text.tokenizer import Tokenizer


class ChatUnsupported(FovealError):
    """The model, or this installation, cannot do what a chat needs; the message says what is missing."""

    code = "unsupported"


class ChatError(ParameterError):
    """A conversation that the model's encoding cannot render; the message says why."""


@dataclass(frozen=True)
class Turn:
    """Where one turn of the assistant stands in a prompt, as a half-open range of its ids.

    message: index in the conversation.   start: where the turn's head begins (its role, thinking marks).
    end: after the token that ends the turn.
    """

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids.

    turns: the finished turns of the assistant that could be located, in order.
    head: where the head of the turn to be generated begins; the number of ids if none was asked for.
    in_reasoning: the prompt has opened the reasoning of the turn to come.
    """

    ids: list[int]
    turns: tuple[Turn, ...]
    head: int
    in_reasoning: bool = False


class ChatEncoding(Protocol):
    """How one model is talked to. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """What people see: ``deepseek-v4``, ``template (hermes)`` ..."""
        ...

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end a turn."""
        ...

    @property
    def thinking_levels(self) -> tuple[str, ...]:
        """The levels of `Thinking` that make a difference to this model."""
        ...

    def render(self, conversation: Conversation) -> Rendered:
        """The prompt. Raises `ChatError` for a conversation that cannot be rendered, `ChatUnsupported` for tools that
        the model has no form for."""
        ...

    def parser(self, conversation: Conversation, rendered: Rendered, *, stop: Sequence[str] = ()) -> ReplyParser:
        """A parser for the reply to a rendered conversation."""
        ...

    def calls_grammar(self, tools: Sequence[ToolDefinition], choice: ToolChoice, *, free: bool) -> str:
        """Rules of a Lark grammar of which ``calls`` is what a reply's calls look like. `free`: content may stand
        before them. Raises `ParameterError` for a schema that cannot be followed, `ChatUnsupported` without tools."""
        ...

    @property
    def think_end(self) -> str | None:
        """The text that ends the reasoning; None if the model has no reasoning."""
        ...

    @property
    def gap_after_reasoning(self) -> bool:
        """Whether line breaks follow the end of the reasoning."""
        ...


def chat_encoding(folder: Path | str, tokenizer: Tokenizer, *, tool_format: str | None = None) -> ChatEncoding:
    """The encoding of the model in `folder`.

    A vocabulary with DeepSeek-V4's control tokens has DeepSeek's encoding (the nano's too, though it was not trained to
    chat). Any other model has the chat template of its folder. `tool_format` names the form of tool calls where it
    cannot be told from the template ("hermes", "llama3" or "mistral").
    Raises `ChatUnsupported` if the folder has no template, or a library is missing.
    """
    if DSML in tokenizer.control_tokens:
        from foveal.text.deepseek import DeepSeekEncoding

        return DeepSeekEncoding(tokenizer)
    from foveal.text.template import TemplateEncoding
    from foveal.text.template_files import read_templates

    return TemplateEncoding(tokenizer, read_templates(Path(folder)), tool_format=tool_format)


def needs(package: str, error: ImportError) -> ChatUnsupported:
    """The error for a library that is not installed."""
    return ChatUnsupported(f"this needs {package}; install it with: pip install 'foveal[serve]' ({error})")


def dumped(value: Any) -> str:
    """A value as the JSON that models are trained on: non-ASCII kept, a space after commas and colons."""
    return json.dumps(value, ensure_ascii=False)
