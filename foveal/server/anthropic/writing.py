"""Replies as the Messages API tells them."""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

from foveal.errors import FovealError
from foveal.server.failures import anthropic_error
from foveal.server.openai.sampling import extras_of
from foveal.server.pieces import Begun, Delta, Ended, Piece, Whole
from foveal.server.settings import Settings
from foveal.server.voices import Part
from foveal.server.wire import sse
from foveal.text.events import CallDelta, CallEnd, CallStart, ContentDelta, Problem, ReasoningDelta, ReplyEvent


def stop_reason(ended: Ended) -> str:
    """Why a reply ended."""
    if ended.finish != "stop":
        return "max_tokens"
    if ended.stopped_by is not None:
        return "stop_sequence"
    return "tool_use" if ended.reply is not None and ended.reply.message.tool_calls else "end_turn"


def usage_of(begun: Begun, model: str, settings: Settings, written: int) -> dict[str, Any]:
    """The usage: what was found in the cache is not among the input tokens."""
    return {
        "input_tokens": begun.prompt_tokens - begun.reused_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": begun.reused_tokens,
        "output_tokens": written,
        "service_tier": "standard",
    } | extras_of(begun, model, settings, written)


def signature(thinking: str) -> str:
    """What stands for the signature of a thinking block; nothing depends on it."""
    return b64encode(sha256(thinking.encode("utf-8", "surrogatepass")).digest()).decode()


def message(answer: Whole, *, id: str, name: str, model: str, settings: Settings, citations: bool) -> dict[str, Any]:
    """A whole reply."""
    ended = answer.replies[0]
    assert ended.reply is not None
    said, content = ended.reply.message, []
    if said.reasoning:
        content.append({"type": "thinking", "thinking": said.reasoning, "signature": signature(said.reasoning)})
    if said.content:
        content.append({"type": "text", "text": said.content})
    for call in said.tool_calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)})
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": name,
        "content": content,
        "stop_reason": stop_reason(ended),
        "stop_sequence": ended.stopped_by,
        "usage": usage_of(answer.begun, model, settings, answer.output_tokens),
    } | ({"citations": list(ended.citations)} if citations else {})


class MessageWriter:
    """One streamed reply. A block is open at most, and every block that was begun is ended."""

    def __init__(self, *, id: str, name: str, model: str, settings: Settings, citations: bool, request_id: str) -> None:
        self._id, self._name, self._model, self._settings = id, name, model, settings
        self._citations, self._request_id = citations, request_id
        self._begun = Begun(0, 0, None)
        self._written = 0
        self._index = -1
        self._open: str | None = None
        self._thought: list[str] = []

    def piece(self, piece: Piece | None) -> list[bytes]:
        """See `foveal.server.streaming.Writer`."""
        if piece is None:
            return [sse({"type": "ping"}, "ping")]
        if isinstance(piece, Begun):
            self._begun = piece
            return [self._start(), sse({"type": "ping"}, "ping")]
        if isinstance(piece, Delta):
            self._written += sum(part is not Part.END for _, part in piece.sampled)
            return [data for event in _joined(piece.events) for data in self._event(event)]
        if isinstance(piece, Ended):
            return [*self._close(), self._delta(piece)]
        return []

    def end(self) -> list[bytes]:
        """See `Writer`."""
        return [sse({"type": "message_stop"}, "message_stop")]

    def failed(self, error: FovealError) -> list[bytes]:
        """See `Writer`."""
        return [sse(anthropic_error(error, self._request_id), "error")]

    def _start(self) -> bytes:
        empty: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(self._begun, self._model, self._settings, 0),
        }
        return sse({"type": "message_start", "message": empty}, "message_start")

    def _delta(self, ended: Ended) -> bytes:
        told: dict[str, Any] = {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason(ended), "stop_sequence": ended.stopped_by},
            "usage": usage_of(self._begun, self._model, self._settings, len(ended.tokens)),
        }
        return sse(told | ({"citations": list(ended.citations)} if self._citations else {}), "message_delta")

    def _event(self, event: ReplyEvent) -> list[bytes]:
        if isinstance(event, ReasoningDelta):
            self._thought.append(event.text)
            opened = self._into("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            return [*opened, self._more({"type": "thinking_delta", "thinking": event.text})]
        if isinstance(event, ContentDelta):
            opened = self._into("text", {"type": "text", "text": ""})
            return [*opened, self._more({"type": "text_delta", "text": event.text})]
        if isinstance(event, CallStart):
            block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            return [*self._close(), *self._into("tool_use", block)]
        if isinstance(event, CallDelta):
            return [self._more({"type": "input_json_delta", "partial_json": event.text})]
        if isinstance(event, CallEnd) or (isinstance(event, Problem) and event.index is not None):
            return self._close()
        return []

    def _into(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        """Open a block, unless one of its kind is open."""
        if self._open == kind:
            return []
        closed = self._close()
        self._open, self._index = kind, self._index + 1
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*closed, sse(start, "content_block_start")]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        told = []
        if self._open == "thinking":
            told.append(self._more({"type": "signature_delta", "signature": signature("".join(self._thought))}))
        self._open = None
        return [*told, sse({"type": "content_block_stop", "index": self._index}, "content_block_stop")]

    def _more(self, delta: dict[str, Any]) -> bytes:
        return sse({"type": "content_block_delta", "index": self._index, "delta": delta}, "content_block_delta")


def _joined(events: list[ReplyEvent]) -> list[ReplyEvent]:
    """Neighbouring texts of one kind as one."""
    found: list[ReplyEvent] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            found[-1] = ContentDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            found[-1] = ReasoningDelta(last.text + event.text)
        else:
            found.append(event)
    return found
