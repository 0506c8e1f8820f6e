"""DeepSeek-V4's tool calls: blocks of invocations and parameters, marked by the control token ｜DSML｜.

Only what hangs on a sampled control token is markup, so that a value may hold anything else, the same letters included.
Values of strings are passed on as they come; other values when they are whole and sound.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeAlias

from foveal.text.calls import CallWriter, Malformed, begins, more, quoted, skip_space, strict_json, take_until
from foveal.text.source import Alphabet, Source, Tag, TagSet
from foveal.text.specials import DSML

Steps: TypeAlias = Generator[None, None, None]

_MAX_HEAD = 1024
"""Characters of a tag at most: names are short."""
_IN_VALUE = "inside the value of a parameter"
_INVOKE = re.compile(r'invoke name="([^\n]+)">')
_PARAMETER = re.compile(r'parameter name="([^\n]*)" string="(true|false)">')


class DsmlSyntax:
    """Reads the blocks of a reply. Tags of one begin a block; any other ``<｜DSML｜`` or ``</｜DSML｜`` is a stray."""

    def __init__(self, alphabet: Alphabet) -> None:
        self._open = alphabet.tag(f"<{DSML}")
        self._block_start, self._block_end = (alphabet.tag(f"{sign}{DSML}tool_calls>") for sign in ("<", "</"))
        self._call_end, value_end = (alphabet.tag(f"</{DSML}{name}>") for name in ("invoke", "parameter"))
        self._block_ends, self._value_ends = TagSet([self._block_end]), TagSet([value_end])
        begun = (alphabet.tag(f"<{DSML}{name}") for name in ("invoke", "parameter"))
        self.openers: tuple[Tag, ...] = (self._block_start, *begun)
        self.strays: tuple[Tag, ...] = (self._open, alphabet.tag(f"</{DSML}"))
        self.strays += (self._block_end, self._call_end, value_end)

    def bare(self, source: Source) -> bool | None:
        """Never: every block has its tag."""
        return False

    def parse(self, source: Source, writer: CallWriter) -> Steps:
        """Read one block. A missing frame around the invocations is forgiven, at the reply's end a missing close."""
        framed = yield from begins(source, self._block_start)
        if framed:
            source.take(len(self._block_start.text))
        read = 0
        while not (yield from self._at_end(source, framed=framed, read=read)):
            name = (yield from self._head(source, _INVOKE, "in the place of a call"))[1]
            yield from self._call(source, writer, name)
            read += 1

    def skip(self, source: Source) -> Steps:
        """Take everything up to the end of the block, or of the reply."""
        while (place := source.find(self._block_end)) < 0:
            source.take(len(source.text) - source.partial(self._block_ends))
            if source.final:
                return
            yield
        source.take(place + len(self._block_end.text))

    def _at_end(self, source: Source, *, framed: bool, read: int) -> Generator[None, None, bool]:
        """Whether the block ends here, after `read` calls; what closes it is taken."""
        yield from skip_space(source)
        closed = yield from begins(source, self._block_end)
        if not read:
            if closed:
                raise Malformed("there is no call in it")
            return False
        if closed:
            source.take(len(self._block_end.text))
        elif framed and source.final and self._block_end.text.startswith(source.text):
            source.take(len(source.text))
            closed = True
        return closed or not (framed or (yield from begins(source, self._open)))

    def _call(self, source: Source, writer: CallWriter, name: str) -> Steps:
        writer.start(name)
        names: set[str] = set()
        while True:
            yield from skip_space(source)
            if (yield from begins(source, self._call_end)):
                source.take(len(self._call_end.text))
                break
            head = yield from self._head(source, _PARAMETER, f"in the place of a parameter of {name!r}")
            yield from self._parameter(source, writer, head[1], head[2] == "true", names)
        writer.text("}" if names else "{}")
        writer.end()

    def _parameter(self, source: Source, writer: CallWriter, name: str, is_string: bool, names: set[str]) -> Steps:
        if name in names:
            value = yield from self._value(source)
            writer.note(f"the parameter {name!r} came twice; the second was left out", value)
            return
        names.add(name)
        key = f'{"{" if len(names) == 1 else ", "}"{quoted(name)}": '
        if is_string:
            writer.text(f'{key}"')
            yield from take_until(source, self._value_ends, _IN_VALUE, lambda piece: writer.text(quoted(piece)))
            writer.text('"')
            return
        value = (yield from self._value(source)).strip()
        try:
            strict_json(value)
        except ValueError:
            writer.note(f"the value of {name!r} is no JSON; it is passed on as a string", value)
            value = f'"{quoted(value)}"'
        writer.text(key + value)

    def _value(self, source: Source) -> Generator[None, None, str]:
        pieces: list[str] = []
        yield from take_until(source, self._value_ends, _IN_VALUE, pieces.append)
        return "".join(pieces)

    def _head(self, source: Source, form: re.Pattern[str], where: str) -> Generator[None, None, re.Match[str]]:
        """Take an opening tag of the given form."""
        while not source.text:
            yield from more(source, where)
        if not (yield from begins(source, self._open)):
            raise Malformed(f"something else stands {where}")
        while True:
            body = source.text[len(self._open.text) :]
            line = body.split("\n", 1)[0]
            for place in (match.end() for match in re.finditer(">", line)):
                if place <= _MAX_HEAD and (found := form.fullmatch(line[:place])):
                    source.take(len(self._open.text) + place)
                    return found
            if len(line) < len(body) or len(line) > _MAX_HEAD:
                raise Malformed(f"something else stands {where}")
            yield from more(source, where)
