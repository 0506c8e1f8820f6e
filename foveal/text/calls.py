"""Tool calls while they are read: the events of a call, JSON that arrives in pieces, and what can go wrong."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Generator
from typing import Any

from foveal.text.events import CallDelta, CallEnd, CallStart, Problem, ReplyEvent
from foveal.text.messages import ToolCall
from foveal.text.source import Source, Tag, TagSet

_SPACE = " \t\r\n"
_SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(Exception):
    """A block of calls that cannot be read; the message says what was wrong. Internal to the parser."""


def new_call_id() -> str:
    """A fresh id of a tool call."""
    return f"call_{secrets.token_hex(12)}"


def quoted(text: str) -> str:
    """`text` as it stands inside a JSON string: non-ASCII kept, lone surrogates escaped."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False)[1:-1])


def strict_json(text: str) -> Any:
    """The value of a JSON text. Raises `ValueError` for anything else, ``NaN`` and too deep nesting included."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class CallWriter:
    """Turns what a tool syntax reads into events, and keeps the complete calls."""

    def __init__(self, emit: Callable[[ReplyEvent], None], new_id: Callable[[], str]) -> None:
        self._emit, self._new_id = emit, new_id
        self._count = 0
        self._open: tuple[int, str, str] | None = None
        self._arguments: list[str] = []
        self.calls: list[ToolCall] = []
        """The complete calls."""

    def start(self, name: str, call_id: str | None = None) -> None:
        """A call of `name` begins."""
        self._open = (self._count, call_id or self._new_id(), name)
        self._arguments = []
        self._count += 1
        self._emit(CallStart(*self._open))

    def text(self, piece: str) -> None:
        """More of its arguments."""
        if piece:
            assert self._open is not None
            self._arguments.append(piece)
            self._emit(CallDelta(self._open[0], piece))

    def end(self) -> None:
        """The call is complete. Raises `Malformed` if its arguments are no JSON object."""
        assert self._open is not None
        index, call_id, name = self._open
        arguments = "".join(self._arguments)
        try:
            sound = isinstance(strict_json(arguments), dict)
        except ValueError:
            sound = False
        if not sound:
            raise Malformed(f"the arguments of {name!r} are no JSON object")
        call = ToolCall(id=call_id, name=name, arguments=arguments)
        self._open = None
        self.calls.append(call)
        self._emit(CallEnd(index, call))

    def note(self, message: str, raw: str) -> None:
        """Something in the open call was mended or left out; the call goes on."""
        self._emit(Problem(message, raw))

    def abandon(self) -> int | None:
        """The open call, if any, will not be completed: its index."""
        index = self._open[0] if self._open else None
        self._open = None
        return index


def more(source: Source, where: str) -> Generator[None, None, None]:
    """Wait for more of the source. Raises `Malformed` if it has ended."""
    if source.final:
        raise Malformed(f"the reply ended {where}")
    yield


def skip_space(source: Source) -> Generator[None, None, None]:
    """Take white space, until something else stands there or the source has ended."""
    while True:
        source.take(len(source.text) - len(source.text.lstrip(_SPACE)))
        if source.text or source.final:
            return
        yield


def begins(source: Source, tag: Tag) -> Generator[None, None, bool]:
    """Whether the source begins with `tag`, as soon as that is certain."""
    while (answer := source.begins(tag)) is None:
        yield
    return answer


class JsonEnd:
    """Finds where a JSON object or list ends, in text that arrives in pieces."""

    def __init__(self) -> None:
        self._depth, self._string, self._escaped = 0, False, False

    def find(self, piece: str) -> int | None:
        """The place in `piece`, the next piece of the text, after which the value ends; None if it goes on."""
        for place, letter in enumerate(piece):
            if self._step(letter):
                return place + 1
        return None

    def _step(self, letter: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif self._string:
            self._escaped = letter == "\\"
            self._string = letter != '"'
        elif letter == '"':
            self._string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False


def take_json(
    source: Source, opens: str, where: str, write: Callable[[str], None] | None = None
) -> Generator[None, None, str]:
    """Take a JSON value that begins with one of `opens` ("{[") and return its text, unchecked. `write` gets its pieces
    as they come."""
    yield from skip_space(source)
    while not source.text:
        yield from more(source, where)
    if source.text[0] not in opens:
        raise Malformed(f"there is no JSON {where}")
    end, pieces = JsonEnd(), []
    while True:
        size = end.find(source.text)
        pieces.append(source.take(len(source.text) if size is None else size)[0])
        if write is not None:
            write(pieces[-1])
        if size is not None:
            return "".join(pieces)
        yield from more(source, where)


def take_until(source: Source, tags: TagSet, where: str, write: Callable[[str], None]) -> Generator[None, None, None]:
    """Take the text before the first of the tags, and the tag. `write` gets the text's pieces as they come."""
    while True:
        place, tag = source.first(tags)
        if tag is not None:
            write(source.take(place)[0])
            source.take(len(tag.text))
            return
        write(source.take(len(source.text) - source.partial(tags))[0])
        yield from more(source, where)
