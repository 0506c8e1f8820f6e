"""Chat completions: a reply as a message, or as chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveal.aio import Sampled
from foveal.errors import FovealError
from foveal.server.failures import openai_error
from foveal.server.openai.sampling import usage_of
from foveal.server.openai.schema import ChatRequest
from foveal.server.pieces import Begun, Delta, Ended, Piece, Whole
from foveal.server.settings import Settings
from foveal.server.voices import Part
from foveal.server.wire import DONE, KEEP_ALIVE, now, sse
from foveal.text import Tokenizer
from foveal.text.events import CallDelta, CallStart, ContentDelta, ReasoningDelta, ReplyEvent
from foveal.text.reply import Reply


def finish_of(ended: Ended) -> str:
    """Why a reply ended."""
    if ended.finish != "stop":
        return "length"
    return "tool_calls" if ended.reply is not None and ended.reply.message.tool_calls else "stop"


def completion(
    answer: Whole, *, id: str, name: str, model: str, tokenizer: Tokenizer, settings: Settings, body: ChatRequest
) -> dict[str, Any]:
    """A chat completion. `model` is whose price counts, `name` what the client called it."""
    choices = []
    for index, ended in sorted(answer.replies.items()):
        assert ended.reply is not None
        choice = {
            "index": index,
            "message": message(ended.reply) | _origins(ended, answer.looks.get(index, []), body),
            "logprobs": _logprobs(answer.sampled.get(index, []), tokenizer) if body.logprobs else None,
            "finish_reason": finish_of(ended),
        }
        choices.append(choice)
    return {
        "id": id,
        "object": "chat.completion",
        "created": now(),
        "model": name,
        "choices": choices,
        "usage": usage_of(answer, model, settings),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _origins(ended: Ended, looks: list[dict[str, Any]], body: ChatRequest) -> dict[str, Any]:
    """Where an answer came from, as far as that was asked for."""
    said: dict[str, Any] = {"citations": list(ended.citations)} if body.citations else {}
    return said | ({"attention": looks} if body.attention else {})


def message(reply: Reply) -> dict[str, Any]:
    """A reply as a message."""
    said = reply.message
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in said.tool_calls
    ]
    told: dict[str, Any] = {
        "role": "assistant",
        "content": said.content if said.content or not calls else None,
        "refusal": None,
        "annotations": [],
    }
    if said.reasoning:
        told["reasoning_content"] = said.reasoning
    return told | ({"tool_calls": calls} if calls else {})


def token_of(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """A token with its log-probability."""
    data = tokenizer.token_bytes(token)
    return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, -9999.0)


def logprobs_of(sampled: Sequence[tuple[Sampled, Part]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokens of the content with their log-probabilities and alternatives."""
    return [
        token_of(tokenizer, chosen.token, chosen.logprob)
        | {"top_logprobs": [token_of(tokenizer, token, value) for token, value in chosen.top]}
        for chosen, part in sampled
        if part is Part.CONTENT
    ]


def _logprobs(sampled: Sequence[tuple[Sampled, Part]], tokenizer: Tokenizer) -> dict[str, Any]:
    return {"content": logprobs_of(sampled, tokenizer), "refusal": None}


class ChatWriter:
    """One streamed chat completion, as server-sent events."""

    def __init__(
        self, *, id: str, name: str, model: str, tokenizer: Tokenizer, settings: Settings, body: ChatRequest
    ) -> None:
        self._head = {"id": id, "object": "chat.completion.chunk", "created": now(), "model": name}
        self._tokenizer, self._body, self._settings, self._model = tokenizer, body, settings, model
        options = body.stream_options
        self._usage = bool(options and options.include_usage)
        self._each = self._usage and bool(options and options.continuous_usage_stats)
        self._unsaid: dict[int, list[tuple[Sampled, Part]]] = {}
        self._answer = Whole.empty()
        self._written = 0

    def piece(self, piece: Piece | None) -> list[bytes]:
        """What is sent for a piece of the answer; None: nothing has come for a while."""
        if piece is None:
            return [KEEP_ALIVE]
        if isinstance(piece, Begun):
            self._answer.begun = piece
            role = {"role": "assistant", "content": "", "refusal": None}
            return [sse(self._chunk(index, role)) for index in range(self._body.n or 1)]
        if isinstance(piece, Delta):
            return [sse(chunk) for chunk in self._delta(piece)]
        if isinstance(piece, Ended):
            self._answer.add(piece)
            return [sse(self._ended(piece))]
        return []

    def end(self) -> list[bytes]:
        """Behind the last piece."""
        if not self._usage:
            return [DONE]
        usage = usage_of(self._answer, self._model, self._settings)
        return [sse(self._head | {"choices": [], "usage": usage}), DONE]

    def failed(self, error: FovealError) -> list[bytes]:
        """In the place of the end."""
        return [sse(openai_error(error))]

    def _delta(self, delta: Delta) -> list[dict[str, Any]]:
        self._written += sum(part is not Part.END for _, part in delta.sampled)
        if self._body.logprobs:
            self._unsaid.setdefault(delta.index, []).extend(delta.sampled)
        said = [*deltas(delta.events), *([{"attention": delta.looks}] if delta.looks else [])]
        return [self._chunk(delta.index, each, self._said(delta.index, each)) for each in said]

    def _ended(self, ended: Ended) -> dict[str, Any]:
        said: dict[str, Any] = {"citations": list(ended.citations)} if self._body.citations else {}
        rest = self._unsaid.pop(ended.index, [])
        logprobs = _logprobs(rest, self._tokenizer) if any(part is Part.CONTENT for _, part in rest) else None
        return self._chunk(ended.index, said, logprobs, finish_of(ended))

    def _said(self, index: int, said: dict[str, Any]) -> dict[str, Any] | None:
        if not self._body.logprobs or "content" not in said:
            return None
        return _logprobs(self._unsaid.pop(index, []), self._tokenizer)

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = self._head | {"choices": [choice]}
        if self._usage:
            told = usage_of(self._answer, self._model, self._settings, self._written) if self._each else None
            chunk |= {"usage": told}
        return chunk


def deltas(events: Sequence[ReplyEvent]) -> list[dict[str, Any]]:
    """The deltas of some events, those of one kind joined."""
    said: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, ReasoningDelta):
            _join(said, "reasoning_content", event.text)
        elif isinstance(event, ContentDelta):
            _join(said, "content", event.text)
        elif isinstance(event, CallStart):
            function = {"name": event.name, "arguments": ""}
            call = {"index": event.index, "id": event.id, "type": "function", "function": function}
            said.append({"tool_calls": [call]})
        elif isinstance(event, CallDelta):
            said.append({"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]})
    return said


def _join(said: list[dict[str, Any]], key: str, text: str) -> None:
    if said and key in said[-1]:
        said[-1][key] += text
    else:
        said.append({key: text})
