"""What is asked and what is answered, in our own words, whatever the API."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveal.aio import Sampled, TokenConstraint
from foveal.memory.kept import Miss
from foveal.server.auth import Key
from foveal.server.registry import Chosen
from foveal.server.voices import Part, Voice
from foveal.text.events import ReplyEvent
from foveal.text.messages import Conversation
from foveal.text.reply import Reply

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How replies are chosen; None is the server's default. `logprobs`: alternatives to each token, None for no
    log-probabilities at all."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    replies: int = 1


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids, and how what follows them is read.

    conversation, head: what it was rendered from, and where the head of the reply begins (chats).
    stop_tokens: ids that end a reply, beside the end of the text.
    """

    ids: Sequence[int]
    voice: Callable[[], Voice]
    constraint: Callable[[], TokenConstraint | None] = lambda: None
    conversation: Conversation | None = None
    head: int = 0
    stop_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request in our own words."""

    id: str
    key: Key
    chosen: Chosen
    prompt: Prompt
    sampling: Sampling
    citations: bool = False
    attention: bool = False
    score_prompt: bool = False
    came: int = field(default_factory=time.time_ns)
    """When, in nanoseconds since 1970."""


@dataclass
class Begun:
    """The prompt has a place and its beginning: nothing can be wrong with the request any more.

    message: the index and role of the message in which the first token stands that was not found; known when the first
    reply has ended.
    """

    prompt_tokens: int
    reused_tokens: int
    miss: Miss | None
    message: Json | None = None


@dataclass(frozen=True)
class Scored:
    """The log-probabilities of the prompt's tokens, but the first."""

    sampled: tuple[Sampled, ...]


@dataclass(frozen=True)
class Delta:
    """More of reply `index`: `text` of a completion or `events` of a chat, the tokens that it came from, and
    where they looked, if that was asked for."""

    index: int
    text: str
    events: list[ReplyEvent]
    sampled: list[tuple[Sampled, Part]]
    looks: list[Json] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """Reply `index` is whole. finish: ``stop``, ``length`` or ``time``.   reply: of a chat."""

    index: int
    finish: str
    tokens: tuple[int, ...]
    stopped_by: str | None = None
    reply: Reply | None = None
    citations: tuple[Json, ...] = ()


Piece = Begun | Scored | Delta | Ended


@dataclass
class Whole:
    """An answer that has ended."""

    begun: Begun
    scored: tuple[Sampled, ...] = ()
    replies: dict[int, Ended] = field(default_factory=dict)
    text: dict[int, list[str]] = field(default_factory=dict)
    sampled: dict[int, list[tuple[Sampled, Part]]] = field(default_factory=dict)
    looks: dict[int, list[Json]] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Whole:
        """Nothing yet."""
        return cls(Begun(0, 0, None))

    @property
    def output_tokens(self) -> int:
        """Of all replies."""
        return sum(len(reply.tokens) for reply in self.replies.values())

    @property
    def reasoning_tokens(self) -> int:
        """Of all replies."""
        return sum(reply.reply.reasoning_tokens for reply in self.replies.values() if reply.reply is not None)

    def add(self, piece: Piece) -> None:
        """Take a piece in."""
        if isinstance(piece, Begun):
            self.begun = piece
        elif isinstance(piece, Scored):
            self.scored = piece.sampled
        elif isinstance(piece, Delta):
            self.text.setdefault(piece.index, []).append(piece.text)
            self.sampled.setdefault(piece.index, []).extend(piece.sampled)
            self.looks.setdefault(piece.index, []).extend(piece.looks)
        else:
            self.replies[piece.index] = piece
