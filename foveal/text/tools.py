"""How models other than DeepSeek's write tool calls: as JSON, each family in a frame of its own.

hermes: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Qwen, Hermes, SmolLM and many more).
llama3: the whole reply is ``{"name": ..., "parameters": {...}}``, perhaps after ``<|python_tag|>``; several with ``;``.
mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``, or ``[TOOL_CALLS]name[ARGS]{...}`` (from v11 on).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeAlias

from foveal.text.calls import CallWriter, JsonEnd, Malformed, begins, more, skip_space, strict_json, take_json
from foveal.text.source import Alphabet, Source, Tag, TagSet

Steps: TypeAlias = Generator[None, None, None]

_MAX_HEAD = 512
"""Characters before a call's arguments, at most, for them to be written as they come; and of a name."""
_KEYS = ("arguments", "parameters")
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class HermesSyntax:
    """JSON between ``<tool_call>`` and ``</tool_call>``; arguments are passed on as they come."""

    def __init__(self, alphabet: Alphabet) -> None:
        self._open, self._close = alphabet.tag("<tool_call>"), alphabet.tag("</tool_call>")
        self._closes = TagSet([self._close])
        self.openers: tuple[Tag, ...] = (self._open,)
        self.strays: tuple[Tag, ...] = (self._close,)

    def bare(self, source: Source) -> bool | None:
        """Never: every call has its tag."""
        return False

    def parse(self, source: Source, writer: CallWriter) -> Steps:
        """Read one call. At the reply's end a missing close is forgiven."""
        source.take(len(self._open.text))
        yield from _stream_call(source, writer)
        yield from skip_space(source)
        closed = yield from begins(source, self._close)
        if closed or (source.final and self._close.text.startswith(source.text)):
            source.take(len(self._close.text))
        elif not (yield from begins(source, self._open)):
            raise Malformed("the call is not closed")

    def skip(self, source: Source) -> Steps:
        """Take everything up to the close, or to the reply's end."""
        yield from _skip_to(source, self._closes)


class LlamaSyntax:
    """Bare JSON. A reply that begins with a brace is a call only if it names a declared tool; else it is content."""

    def __init__(self, alphabet: Alphabet, names: Iterable[str]) -> None:
        self._python = alphabet.tag("<|python_tag|>")
        self._names = frozenset(names)
        self.openers: tuple[Tag, ...] = (self._python,)
        self.strays: tuple[Tag, ...] = ()
        self._end, self._seen = JsonEnd(), 0

    def bare(self, source: Source) -> bool | None:
        """Whether the content is a call of a declared tool, as soon as its JSON is whole."""
        text = source.text.lstrip()
        if not text:
            return False if source.final else None
        if not self._names or text[0] != "{" or _other_key(text):
            return False
        size = self._end.find(text[self._seen :])
        if size is None:
            self._seen = len(text)
            return False if source.final else None
        return _read_call(text[: self._seen + size], self._names) is not None

    def parse(self, source: Source, writer: CallWriter) -> Steps:
        """Read the calls."""
        if source.begins(self._python):
            source.take(len(self._python.text))
        while True:
            _write(writer, (yield from take_json(source, "{", "in the place of a call")))
            yield from skip_space(source)
            if not source.text.startswith(";"):
                return
            source.take(1)

    def skip(self, source: Source) -> Steps:
        """Take everything: nothing marks an end."""
        while not source.final:
            source.take(len(source.text))
            yield
        source.take(len(source.text))


class MistralSyntax:
    """JSON after ``[TOOL_CALLS]``: a list of calls, or the name and its arguments."""

    def __init__(self, alphabet: Alphabet) -> None:
        self._open, self._arguments = alphabet.tag("[TOOL_CALLS]"), alphabet.tag("[ARGS]")
        self._call_id = alphabet.tag("[CALL_ID]")
        self._opens = TagSet([self._open])
        self.openers: tuple[Tag, ...] = (self._open,)
        self.strays: tuple[Tag, ...] = (self._arguments, self._call_id)

    def bare(self, source: Source) -> bool | None:
        """Never: every call has its tag."""
        return False

    def parse(self, source: Source, writer: CallWriter) -> Steps:
        """Read one list of calls, or one call."""
        source.take(len(self._open.text))
        yield from skip_space(source)
        while not source.text:
            yield from more(source, "in the place of a call")
        if source.text[0] not in "[{":
            yield from self._named(source, writer)
            return
        text = yield from take_json(source, "[{", "in the place of a call")
        for call in _calls(text):
            _write(writer, call)

    def skip(self, source: Source) -> Steps:
        """Take everything up to the next call, or to the reply's end."""
        while (place := source.find(self._open)) < 0:
            source.take(len(source.text) - source.partial(self._opens))
            if source.final:
                return
            yield
        source.take(place)

    def _named(self, source: Source, writer: CallWriter) -> Steps:
        while (place := source.find(self._arguments)) < 0:
            _check_name(source.text[: -len(self._arguments.text)])
            yield from more(source, "in a call's name")
        _check_name(source.text[:place])
        head = source.find(self._call_id)
        name = source.text[: head if 0 <= head < place else place].strip()
        call_id = source.text[head + len(self._call_id.text) : place].strip() if 0 <= head < place else None
        source.take(place + len(self._arguments.text))
        arguments = yield from take_json(source, "{", f"in the place of the arguments of {name!r}")
        writer.start(name, call_id or None)
        writer.text(arguments)
        writer.end()


MARKS: Mapping[str, tuple[str, ...]] = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
}
"""The literals of each format; where a vocabulary has them as tokens they are control tokens."""

SYNTAXES: Mapping[str, Callable[[Alphabet, Iterable[str]], HermesSyntax | LlamaSyntax | MistralSyntax]] = {
    "hermes": lambda alphabet, names: HermesSyntax(alphabet),
    "llama3": LlamaSyntax,
    "mistral": lambda alphabet, names: MistralSyntax(alphabet),
}


def tool_format(template: str) -> str | None:
    """The name of the tool format that a chat template speaks, told by what it contains; None if none is known."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    if "<|python_tag|>" in template or ('"parameters": ' in template and "tools" in template):
        return "llama3"
    return None


def _stream_call(source: Source, writer: CallWriter) -> Steps:
    """Read ``{"name": ..., "arguments": {...}}``. In this order arguments are written as they come."""
    yield from skip_space(source)
    while (head := _HEAD.match(source.text)) is None or head.end() > _MAX_HEAD:
        whole = JsonEnd().find(source.text) is not None
        if whole or len(source.text) > _MAX_HEAD + 1 or not source.text.startswith("{"[: len(source.text)]):
            _write(writer, (yield from take_json(source, "{", "in the place of a call")))
            return
        yield from more(source, "inside a call")
    writer.start(_name(head[1]))
    source.take(head.end())
    yield from take_json(source, "{", "in the arguments of a call", writer.text)
    yield from skip_space(source)
    while not source.text:
        yield from more(source, "before a call was closed")
    if source.take(1)[0] != "}":
        raise Malformed("something follows the arguments of a call")
    writer.end()


def _check_name(text: str) -> None:
    if "\n" in text or "{" in text or len(text) > _MAX_HEAD:
        raise Malformed("there is no [ARGS] after the name")


def _name(text: str) -> str:
    try:
        return str(strict_json(text))
    except ValueError:
        raise Malformed("the name of a call is no JSON string") from None


def _calls(text: str) -> list[str]:
    try:
        value = strict_json(text)
    except ValueError as error:
        raise Malformed(f"a call is no JSON: {error}") from None
    return [text] if isinstance(value, dict) else [json.dumps(call, ensure_ascii=False) for call in value]


def _write(writer: CallWriter, text: str) -> None:
    """Write a whole call. Raises `Malformed` if it is none."""
    call = _read_call(text)
    if call is None:
        raise Malformed("a call needs a name and arguments")
    writer.start(call[0], call[2])
    writer.text(call[1])
    writer.end()


def _read_call(text: str, names: frozenset[str] | None = None) -> tuple[str, str, str | None] | None:
    """Name, arguments and id of a call, None if `text` is none (or of no tool in `names`)."""
    try:
        call = strict_json(text)
    except ValueError:
        return None
    if not isinstance(call, dict):
        return None
    name = call.get("name")
    arguments: Any = next((call[key] for key in _KEYS if key in call), {})
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(name, str) or not isinstance(arguments, str) or (names is not None and name not in names):
        return None
    call_id = call.get("id")
    return name, arguments, call_id if isinstance(call_id, str) and call_id else None


def _other_key(text: str) -> bool:
    """Whether an object's first key shows that it is no call."""
    key = re.match(r'\{\s*"([^"\\]*)"', text)
    return key is not None and key[1] not in ("name", "type", "function", "id", *_KEYS)


def _skip_to(source: Source, ends: TagSet) -> Steps:
    while True:
        place, tag = source.first(ends)
        if tag is not None:
            source.take(place + len(tag.text))
            return
        source.take(len(source.text) - source.partial(ends))
        if source.final:
            return
        yield
