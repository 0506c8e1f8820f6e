"""What a reply parser says of a reply, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from foveal.text.messages import ToolCall


@dataclass(frozen=True)
class ReasoningDelta:
    """More reasoning."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """More content."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A tool call begins. `index` counts the calls of the reply from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallDelta:
    """More of the arguments of call `index`: joined, a JSON text."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """Call `index` is complete; its arguments are a JSON object."""

    index: int
    call: ToolCall


@dataclass(frozen=True)
class Problem:
    """Something that could not be read, or was left out: a broken or unfinished call, a stray control token.

    `raw` is the text that it concerns, markup included: for people and logs, not for the content. `index` is the call
    that was begun and will not end, None when none was.
    """

    message: str
    raw: str
    index: int | None = None


ReplyEvent: TypeAlias = ReasoningDelta | ContentDelta | CallStart | CallDelta | CallEnd | Problem
