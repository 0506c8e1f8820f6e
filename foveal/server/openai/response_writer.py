"""A reply as a response: its items, and its events one by one."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from foveal.errors import FovealError
from foveal.server.failures import openai_error
from foveal.server.openai.chat import logprobs_of
from foveal.server.openai.items import Json, Named, Tools
from foveal.server.openai.sampling import extras_of
from foveal.server.pieces import Begun, Delta, Ended, Piece, Whole
from foveal.server.settings import Settings
from foveal.server.wire import KEEP_ALIVE, new_id, sse
from foveal.text import Tokenizer
from foveal.text.events import CallDelta, CallEnd, CallStart, ContentDelta, Problem, ReasoningDelta, ReplyEvent


class ResponseWriter:
    """Builds the response while its events are sent. `response` is the object, whole after `Ended`.

    One item is open at most; whatever was begun is ended.
    """

    def __init__(
        self,
        response: Json,
        tools: Tools,
        model: str,
        settings: Settings,
        *,
        encrypted: bool,
        logprobs_of: Tokenizer | None = None,
    ) -> None:
        """`response` has all fields but what the reply decides.   encrypted: reasoning is told in that field, too.
        logprobs_of: whose tokens the log-probabilities of the text are told with; None for none."""
        self.response, self._tools, self._model, self._settings = response, tools, model, settings
        self._encrypted, self._tokenizer = encrypted, logprobs_of
        self._unsaid: list[Json] = []
        self._answer = Whole.empty()
        self._number = -1
        self._item: _Item | None = None

    def piece(self, piece: Piece | None) -> list[bytes]:
        """See `foveal.server.streaming.Writer`."""
        if piece is None:
            return [KEEP_ALIVE]
        self._answer.add(piece)
        if isinstance(piece, Begun):
            return [
                self._send("response.created", response=self.response),
                self._send("response.in_progress", response=self.response),
            ]
        if isinstance(piece, Delta):
            if self._tokenizer is not None:
                self._unsaid += logprobs_of(piece.sampled, self._tokenizer)
            return [data for event in piece.events for data in self._event(event)]
        if isinstance(piece, Ended):
            closed = self._close(whole=piece.finish == "stop")
            self._finish(piece)
            return closed
        return []

    def end(self) -> list[bytes]:
        """See `Writer`."""
        return [self._send(f"response.{self.response['status']}", response=self.response)]

    def failed(self, error: FovealError) -> list[bytes]:
        """See `Writer`."""
        told = openai_error(error)["error"]
        self.response |= {"status": "failed", "error": {"code": told["code"], "message": told["message"]}}
        return self.end()

    # ------------------------------------------------------------------ the reply

    def _finish(self, ended: Ended) -> None:
        begun, written = self._answer.begun, len(ended.tokens)
        reasoned = ended.reply.reasoning_tokens if ended.reply is not None else 0
        if ended.finish != "stop":
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        else:
            self.response["status"] = "completed"
        self.response["usage"] = {
            "input_tokens": begun.prompt_tokens,
            "input_tokens_details": {"cached_tokens": begun.reused_tokens},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": reasoned},
            "total_tokens": begun.prompt_tokens + written,
        } | extras_of(begun, self._model, self._settings, written)
        if ended.citations:
            self.response["citations"] = list(ended.citations)

    def _event(self, event: ReplyEvent) -> list[bytes]:
        if isinstance(event, ReasoningDelta):
            return [*self._into("reasoning"), *self._more(event.text)]
        if isinstance(event, ContentDelta):
            return [*self._into("message"), *self._more(event.text)]
        if isinstance(event, CallStart):
            named = self._tools.of(event.name)
            return [*self._close(), *self._begin(_Item("call", event.id, named, len(self.response["output"])))]
        if isinstance(event, CallDelta):
            return self._more(event.text)
        if isinstance(event, CallEnd):
            return self._close()
        if isinstance(event, Problem) and event.index is not None:
            return self._close(whole=False)
        return []

    def _into(self, kind: str) -> list[bytes]:
        if self._item is not None and self._item.kind == kind:
            return []
        closed = self._close()
        return [*closed, *self._begin(_Item(kind, "", Named(""), len(self.response["output"])))]

    def _begin(self, item: _Item) -> list[bytes]:
        self._item = item
        told = [self._of("response.output_item.added", item, item=item.told("in_progress"))]
        if item.kind == "message":
            told.append(self._of("response.content_part.added", item, content_index=0, part=_part("", [])))
        if item.kind == "reasoning":
            part = {"type": "summary_text", "text": ""}
            told.append(self._of("response.reasoning_summary_part.added", item, summary_index=0, part=part))
        return told

    def _more(self, text: str) -> list[bytes]:
        item = self._item
        assert item is not None
        item.text.append(text)
        if item.kind == "reasoning":
            return [self._of("response.reasoning_summary_text.delta", item, summary_index=0, delta=text)]
        if item.kind == "message":
            logprobs = self._said(item)
            return [self._of("response.output_text.delta", item, content_index=0, delta=text, logprobs=logprobs)]
        if item.named.custom:
            return []  # the input is inside of a JSON text: it is told when that is whole
        return [self._of("response.function_call_arguments.delta", item, delta=text)]

    def _said(self, item: _Item) -> list[Json]:
        """The log-probabilities of the tokens of an item that were not told yet."""
        said, self._unsaid = self._unsaid, []
        item.logprobs += said
        return said

    def _close(self, whole: bool = True) -> list[bytes]:
        item, self._item = self._item, None
        if item is None:
            return []
        text = "".join(item.text)
        if item.kind == "reasoning":
            part = {"type": "summary_text", "text": text}
            told = [
                self._of("response.reasoning_summary_text.done", item, summary_index=0, text=text),
                self._of("response.reasoning_summary_part.done", item, summary_index=0, part=part),
            ]
        elif item.kind == "message":
            self._said(item)
            part = _part(text, item.logprobs)
            told = [
                self._of("response.output_text.done", item, content_index=0, text=text, logprobs=item.logprobs),
                self._of("response.content_part.done", item, content_index=0, part=part),
            ]
        elif item.named.custom:
            told = [
                self._of("response.custom_tool_call_input.delta", item, delta=item.input()),
                self._of("response.custom_tool_call_input.done", item, input=item.input()),
            ]
        else:
            name = item.named.name
            told = [self._of("response.function_call_arguments.done", item, arguments=text, name=name)]
        done = item.told("completed" if whole else "incomplete", self._encrypted)
        self.response["output"].append(done)
        return [*told, self._of("response.output_item.done", item, item=done)]

    # ------------------------------------------------------------------ events

    def _of(self, kind: str, of: _Item, /, **fields: Any) -> bytes:
        """An event of an item."""
        named = {} if "item" in fields else {"item_id": of.id}
        return self._send(kind, **named, output_index=of.index, **fields)

    def _send(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number} | fields, kind)


class _Item:
    """An item of the output: ``reasoning``, ``message`` or ``call``."""

    def __init__(self, kind: str, call_id: str, named: Named, index: int) -> None:
        self.kind, self.call_id, self.named, self.index = kind, call_id, named, index
        prefix = {"reasoning": "rs_", "message": "msg_"}.get(kind, "ctc_" if named.custom else "fc_")
        self.id = new_id(prefix)
        self.text: list[str] = []
        self.logprobs: list[Json] = []

    def input(self) -> str:
        """The input of a call that takes free text."""
        try:
            return str(json.loads("".join(self.text)).get("input", ""))
        except (ValueError, AttributeError):
            return "".join(self.text)

    def told(self, status: str, encrypted: bool = False) -> Json:
        """The item as JSON; empty while it is in progress."""
        text = "" if status == "in_progress" else "".join(self.text)
        if self.kind == "reasoning":
            summary = [{"type": "summary_text", "text": text}] if text else []
            secret = {"encrypted_content": b64encode(text.encode("utf-8", "replace")).decode()} if encrypted else {}
            return {"id": self.id, "type": "reasoning", "summary": summary} | secret
        head: Json = {"id": self.id, "status": status}
        if self.kind == "message":
            parts = [] if status == "in_progress" else [_part(text, self.logprobs)]
            return head | {"type": "message", "role": "assistant", "content": parts}
        head |= {"call_id": self.call_id, "name": self.named.name}
        if self.named.namespace:
            head["namespace"] = self.named.namespace
        if self.named.custom:
            return head | {"type": "custom_tool_call", "input": "" if status == "in_progress" else self.input()}
        return head | {"type": "function_call", "arguments": text}


def _part(text: str, logprobs: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
