"""A conversation with a server, by the chat completions API. It is a list of messages; the server finds what it knows.

The conversation is saved as JSON in a file of the person's own: messages are what any server can go on from.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from foveal.cli.chatting.asked import Asked, CannotAsk, Zoom, go_without
from foveal.cli.chatting.remote_turn import RemoteTurn
from foveal.cli.chatting.talk import Answer, Cited, Outcome
from foveal.cli.output import UserError
from foveal.cli.server import Json, Server
from foveal.engine import SHIPPED
from foveal.memory.names import check_name
from foveal.text.events import ContentDelta, ReasoningDelta, ReplyEvent


def chats_folder() -> Path:
    """Where conversations with servers lie: $XDG_DATA_HOME/foveal/chats."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "foveal" / "chats"


class Remote:
    """A `Talk` with a server."""

    def __init__(
        self, server: Server, name: str, options: Json, messages: list[Json], zoom: Zoom, *, folder: Path
    ) -> None:
        """`options`: fields of the request.   messages: what was said already, system message included."""
        self._server, self.name, self._options = server, name, options
        self._messages, self._folder = messages, folder
        self._zoom = zoom
        self.zooms = "memory" in options if zoom.every is None else zoom.every

    @classmethod
    def load(cls, server: Server, name: str, options: Json, zoom: Zoom, *, folder: Path) -> Remote | None:
        """The conversation saved as `name`; None if there is none. Raises `UserError` for a file that is no good."""
        file = folder / f"{check_name(name)}.json"
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            messages, memory = _turns_in(saved["messages"]), saved.get("memory")
            if not isinstance(memory, str | None):
                raise ValueError("its memory has no name")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} is no saved conversation: {error}") from error
        if memory is not None:
            options = {"memory": memory, "citations": True} | options
        return cls(server, name, options, messages, zoom, folder=folder)

    @property
    def has_memory(self) -> bool:
        """Whether it is about a memory."""
        return "memory" in self._options

    @property
    def turns(self) -> Sequence[tuple[str, str]]:
        """See `Talk`."""
        said = [message for message in self._messages if message["role"] != "system"]
        return [(user["content"], answer["content"]) for user, answer in zip(said[::2], said[1::2], strict=True)]

    def say(self, text: str) -> Answer:
        """See `Talk`. What a model that was not made to chat would say means nothing: the one that words answers says
        it."""
        if self.zooms and self._options["model"] in SHIPPED:
            return Asked(lambda: self._begin(text, 0), None, None)
        asked = [*self._messages, {"role": "user", "content": text}]
        body = self._options | {"messages": asked, "stream": True, "stream_options": {"include_usage": True}}

        def keep(message: Json) -> None:
            self._messages = [*asked, message]

        return RemoteAnswer(self._server, body, keep)

    def ask(self, question: str, *, only: bool) -> Answer:
        """See `Talk`. The server knows what the memory read, and nothing of the conversation."""
        otherwise = None if only else lambda: self.say(question)
        return Asked(lambda: self._begin(question, self._zoom.places), otherwise, partial(go_without, self, self._zoom))

    def _begin(self, question: str, zoom: int) -> RemoteTurn:
        memory = self._options.get("memory")
        if memory is None:
            raise CannotAsk("there is no memory to ask; begin a conversation with --memory NAME")
        body: Json = {"question": question, "zoom": zoom, "model": self._options["model"]}
        body |= {"with": self._zoom.with_} if self._zoom.with_ is not None else {}
        body |= {"max_tokens": self._zoom.max_tokens} if self._zoom.max_tokens is not None else {}

        def keep(answer: str) -> None:
            said = {"role": "assistant", "content": answer}
            self._messages = [*self._messages, {"role": "user", "content": question}, said]

        return RemoteTurn(self._server, str(memory), body, keep)

    def fork(self, turn: int, name: str) -> None:
        """See `Talk`."""
        if not 0 <= turn <= len(self.turns):
            raise UserError(f"there is no turn {turn}; the conversation has {len(self.turns)}")
        first = sum(message["role"] == "system" for message in self._messages)
        self._messages, self.name = self._messages[: first + 2 * turn], name

    def taken(self, name: str) -> bool:
        """See `Talk`."""
        return (self._folder / f"{check_name(name)}.json").exists()

    def save(self, name: str) -> None:
        """See `Talk`. Raises `UserError`."""
        check_name(name)
        saved = {"server": self._server.url, "model": self._options.get("model"), "messages": self._messages}
        if "memory" in self._options:
            saved["memory"] = self._options["memory"]
        file = self._folder / f"{name}.json"
        part = file.with_name(f".{name}.part")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
                json.dump(saved, out, indent=1)
            part.replace(file)
        except OSError as error:
            raise UserError(f"the conversation cannot be saved: {error}") from error
        self.name = name

    def why(self) -> None:
        """See `Talk`."""
        from foveal.cli.commands.why import fetch, show

        show(fetch(self._server, 10, None))

    def close(self) -> None:
        """See `Talk`. There is nothing to give back."""


class RemoteAnswer:
    """An `Answer` of a server."""

    def __init__(self, server: Server, body: Json, keep: Callable[[Json], None]) -> None:
        self._keep = keep
        self._began = time.perf_counter()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._first, self._finish = 0.0, ""
        self._tokens = (0, 0, 0)
        """Of the prompt, found of them, and written."""
        self._cited: tuple[Cited, ...] = ()
        self._stream = server.stream("/v1/chat/completions", body)

    def stop(self) -> None:
        """See `Answer`."""
        self._stream.stop()

    def close(self) -> None:
        """See `Answer`."""
        self._stream.close()

    def __iter__(self) -> Iterator[ReplyEvent]:
        for chunk in self._stream:
            yield from self._understood(chunk)
        if not self._finish and not self._stream.stopped:
            raise UserError("the server broke the answer off")
        said = {"role": "assistant", "content": "".join(self._text)}
        if self._reasoning:
            said["reasoning_content"] = "".join(self._reasoning)
        if not self._nothing:
            self._keep(said)

    def _understood(self, chunk: Json) -> list[ReplyEvent]:
        """`_events`. Raises `UserError` for what has another form than a chunk has."""
        try:
            return list(self._events(chunk))
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"the server sent what is no chunk of a chat: {str(chunk)[:60]}") from error

    def _events(self, chunk: Json) -> Iterator[ReplyEvent]:
        if usage := chunk.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            self._tokens = usage["prompt_tokens"], details.get("cached_tokens") or 0, usage["completion_tokens"]
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            if not all(isinstance(delta.get(name) or "", str) for name in ("content", "reasoning_content")):
                raise TypeError("a text is none")
            if not self._first and (delta.get("content") or delta.get("reasoning_content")):
                self._first = time.perf_counter() - self._began
            if text := delta.get("reasoning_content"):
                self._reasoning.append(text)
                yield ReasoningDelta(text)
            if text := delta.get("content"):
                self._text.append(text)
                yield ContentDelta(text)
            if cited := delta.get("citations"):
                self._cited = tuple(map(_cited, cited))
            self._finish = choice.get("finish_reason") or self._finish

    @property
    def _nothing(self) -> bool:
        """Whether it was stopped before anything was said."""
        return self._stream.stopped and not self._text and not self._reasoning

    @property
    def outcome(self) -> Outcome:
        """See `Answer`."""
        if self._nothing:
            return Outcome(finish="")
        prompt, found, written = self._tokens
        return Outcome(
            finish="stopped" if self._stream.stopped else "length" if self._finish == "length" else "stop",
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            prompt_tokens=prompt,
            found=found,
            written=written,
            citations=self._cited,
            first=self._first,
            whole=time.perf_counter() - self._began,
        )


def _cited(said: Json) -> Cited:
    remark = "earlier version" if said.get("outdated") else "changed since" if said.get("stale") else ""
    return Cited(said["path"], said["first_line"], said["last_line"], said["share"], remark)


def _turns_in(messages: Any) -> list[Json]:
    """Messages that were saved: a system message or none, then turns. Raises `ValueError` for others."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) or not all(isinstance(m["content"], str) for m in messages):
        raise ValueError("its messages are no turns")
    return list(messages)
