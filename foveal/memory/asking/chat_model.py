"""The model that words an answer: an engine, its chat form, and how much of a prompt it sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from foveal.config import HCA_RATIO, ModelConfig
from foveal.engine import SHIPPED, Engine, model_folder, own_model
from foveal.errors import FovealError
from foveal.text.chat import ChatEncoding, ChatUnsupported, chat_encoding
from foveal.text.messages import Conversation, Message

SUGGESTED = "smollm2"
LEAST_ROOM = 384
"""Tokens that a model must see at once to be worth asking."""


class NoChatModel(FovealError):
    """There is no model that could word an answer; the message says how to get one."""

    code = "unsupported"


@dataclass(frozen=True)
class ChatModel:
    """An engine with the chat form of its model."""

    engine: Engine
    encoding: ChatEncoding

    @classmethod
    def of(cls, engine: Engine, folder: Path | str) -> ChatModel:
        """The chat model that `engine`, opened from `folder`, is. Raises `NoChatModel`."""
        try:
            encoding = chat_encoding(folder, engine.tokenizer)
        except ChatUnsupported as error:
            raise NoChatModel(f"the model {engine.name} cannot chat: {error}; {HOW}") from error
        return cls.fitting(engine, encoding)

    @classmethod
    def fitting(cls, engine: Engine, encoding: ChatEncoding) -> ChatModel:
        """The two together. Raises `NoChatModel` for a model that sees too little at once."""
        if room(engine.config) < LEAST_ROOM:
            raise NoChatModel(
                f"the model {engine.name} sees {room(engine.config)} tokens at once, which is too few to answer from "
                f"({LEAST_ROOM} are needed); convert it with a larger --window"
            )
        return cls(engine, encoding)

    @classmethod
    def open(cls, model: str | Path, *, threads: int | None = None) -> ChatModel:
        """The chat model called `model`, or in that folder. Raises `NoChatModel` and what `Engine.open` does."""
        if str(model) in SHIPPED:
            raise NoChatModel(f"the model {model} was not made to chat; {HOW}")
        if str(model) == SUGGESTED and own_model(SUGGESTED) is None and not Path(model).exists():
            raise NoChatModel(f"there is no model {SUGGESTED} yet; {HOW}")
        engine = Engine.open(model, threads=threads)
        try:
            return cls.of(engine, model_folder(model))
        except BaseException:
            engine.close()
            raise

    @property
    def room(self) -> int:
        """Tokens of a prompt and its reply that it sees at once, or its whole context where it looks further back."""
        return min(room(self.engine.config), self.engine.batch.context_length)

    def ids(self, *messages: Message) -> list[int]:
        """A conversation as the prompt of the next turn."""
        return self.encoding.render(Conversation(messages=messages)).ids

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.engine.tokenizer.encode(text))


HOW = f"`foveal convert {SUGGESTED}` gets one that can (93 MB), then: --with {SUGGESTED}"


def room(config: ModelConfig) -> int:
    """Tokens that a network sees at once: its raw window, or its whole context where it looks back."""
    return config.max_position_embeddings if looks_back(config) else config.sliding_window


def looks_back(config: ModelConfig) -> bool:
    """Whether a layer looks up entries beyond the raw window (one of 128 tokens holds too little to count)."""
    return any(ratio and ratio < HCA_RATIO for ratio in config.compress_ratios)


def default_chat_model(own: str) -> str:
    """The name of the model to ask when none was named: that of the memory (`own`), unless it ships with Foveal and so
    cannot chat. Raises `NoChatModel`."""
    if own and own not in SHIPPED:
        return own
    if own_model(SUGGESTED) is not None:
        return SUGGESTED
    raise NoChatModel(f"no model here can word an answer; {HOW}")


@contextmanager
def opened_chat(
    own: Engine, model: ChatModel | str | Path | None = None, *, threads: int | None = None
) -> Iterator[ChatModel]:
    """The chat model that was named, or is open, or is the default beside the engine of a memory; closed afterwards if
    it was opened here. Raises `NoChatModel` and what `Engine.open` does."""
    if isinstance(model, ChatModel):
        yield model
        return
    name = model or default_chat_model(own.name)
    if own.folder is not None and ((model is None and name == own.name) or _lies_at(name, own.folder)):
        yield ChatModel.of(own, own.folder)
        return
    chat = ChatModel.open(name, threads=threads)
    with chat.engine:
        yield chat


def _lies_at(model: str | Path, folder: Path) -> bool:
    """Whether the model called `model` is the one in `folder`, and may be asked."""
    if str(model) in SHIPPED:
        return False
    try:
        return model_folder(model).samefile(folder)
    except OSError:
        return False
