"""Patterns of ``.gitignore`` files, as git reads and matches them (its `dir.c` and `wildmatch.c`).

Names are bytes to git, and so they are here: ``?`` is one byte, classes are of ASCII. Each pattern becomes a regular
expression over bytes. Libraries for this (pathspec, dulwich) disagree with git on trailing blanks, POSIX classes,
escapes and names that are no UTF-8; a test holds this one against git itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

_SPECIAL = b"*?[\\"
_CLASSES = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb" \t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    b"space": rb" \t\n\r",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}
"""What git's own character tests hold, whatever the locale says."""
_STAR, _BELOW, _SLASH = b"*", b"**/", b"/"


class _NeverMatches(Exception):
    """Git takes the pattern and matches nothing with it."""


@dataclass(frozen=True)
class Pattern:
    """One line. `regex` is matched against the whole path from the pattern's folder, or against the last name only."""

    regex: re.Pattern[bytes]
    ignores: bool
    folders_only: bool
    whole_path: bool

    def matches(self, path: bytes, name: bytes, is_folder: bool) -> bool:
        if self.folders_only and not is_folder:
            return False
        return self.regex.fullmatch(path if self.whole_path else name) is not None


@dataclass(frozen=True)
class Patterns:
    """The patterns of one file, or those that somebody gave."""

    patterns: tuple[Pattern, ...]

    @classmethod
    def of_file(cls, content: bytes) -> Patterns:
        """From the bytes of an ignore file: lines end at LF only, and of a CR before it one is dropped."""
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return cls(tuple(found for line in lines if (found := parse(line.removesuffix(b"\r"))) is not None))

    @classmethod
    def of_globs(cls, globs: Iterable[str]) -> Patterns:
        """From what somebody gave. Raises `ValueError` naming what can match nothing."""
        made = []
        for glob in globs:
            pattern = parse(os.fsencode(glob))
            if pattern is None:
                raise ValueError(f"{glob!r} matches nothing")
            made.append(pattern)
        return cls(tuple(made))

    @cached_property
    def _latest_first(self) -> Sequence[Pattern]:
        return self.patterns[::-1]

    def verdict(self, path: str) -> bool | None:
        """Whether the last pattern that matches `path` itself ignores it; None when none does. Folders end in ``/``."""
        raw = os.fsencode(path)
        is_folder, raw = raw.endswith(b"/"), raw.removesuffix(b"/")
        name = raw.rpartition(b"/")[2]
        for pattern in self._latest_first:
            if pattern.matches(raw, name, is_folder):
                return pattern.ignores
        return None

    def covers(self, path: str) -> bool:
        """Whether `path`, or else the nearest folder around it that any pattern matches, is not taken back."""
        while path:
            verdict = self.verdict(path)
            if verdict is not None:
                return verdict
            path = path[: path.rstrip("/").rfind("/") + 1]
        return False


def parse(line: bytes) -> Pattern | None:
    """The pattern in a line without its end; None for comments, and for what git matches nothing with."""
    if line.startswith(b"#"):
        return None
    text = _trimmed(line.partition(b"\0")[0])
    ignores = not text.startswith(b"!")
    text = text.removeprefix(b"!")
    folders_only = text.endswith(b"/")
    text = text.removesuffix(b"/")
    whole_path = b"/" in text
    if not text:
        return None
    try:
        regex = _path_regex(text.removeprefix(b"/")) if whole_path else _regex(text, b".", at_start=False)
    except _NeverMatches:
        return None
    return Pattern(re.compile(regex, re.DOTALL), ignores, folders_only, whole_path)


def _trimmed(line: bytes) -> bytes:
    """Without the spaces at its end, unless a backslash stands before them. Tabs and other blanks stay."""
    end = place = 0
    while place < len(line):
        if line[place] == 0x5C:
            place += 1
            if place == len(line):
                return line
            end = place + 1
        elif line[place] != 0x20:
            end = place + 1
        place += 1
    return line[:end]


def _path_regex(text: bytes) -> bytes:
    """Git compares what stands before the first special character as it is, and matches the rest by itself: so ``**``
    behind it counts as if it began the pattern."""
    size = next((place for place, byte in enumerate(text) if byte in _SPECIAL), len(text))
    return re.escape(text[:size]) + _regex(text[size:], b"[^/]", at_start=True)


def _regex(text: bytes, any_byte: bytes, *, at_start: bool) -> bytes:
    """`any_byte` is what ``?`` matches; `at_start` says that ``**`` may cross folders (where slashes or ends are)."""
    parts: list[tuple[bytes, bytes]] = []
    place = 0
    while place < len(text):
        byte = text[place : place + 1]
        if byte == b"*":
            end = place + len(text[place:]) - len(text[place:].lstrip(b"*"))
            crosses = at_start and end - place > 1 and (place == 0 or text[place - 1 : place] == b"/")
            kind, place = _stars(text, end, crosses)
            parts.append((kind, b""))
        elif byte == b"[":
            source, place = _bracket(text, place + 1)
            parts.append((b"", source if any_byte == b"." else rb"(?!/)" + source))
        elif byte == b"?":
            parts.append((b"", any_byte))
            place += 1
        else:
            place += byte == b"\\"
            if place == len(text):
                raise _NeverMatches
            parts.append((_SLASH if text[place] == 0x2F else b"", re.escape(text[place : place + 1])))
            place += 1
    return _joined(parts, any_byte)


def _stars(text: bytes, end: int, crosses: bool) -> tuple[bytes, int]:
    """What a run of stars that ends before `end` means, and where the pattern goes on."""
    if crosses and text[end : end + 1] == b"/":
        return _BELOW, end + 1
    if crosses and (end == len(text) or text[end : end + 2] == b"\\/"):
        return b"**", end
    return _STAR, end


def _joined(parts: Sequence[tuple[bytes, bytes]], any_byte: bytes) -> bytes:
    """One expression. What stands between two stars of one name is matched at the first place where it fits and never
    tried elsewhere: the second star takes any rest, and a hostile pattern costs no more than a plain one."""
    made, open_star = b"", b""
    for kind, source in parts:
        if kind == _STAR:
            made += b"(?>" + any_byte + b"*?" + open_star[1:] + b")" if open_star else b""
            open_star = b"*"
        elif kind in (_BELOW, b"**", _SLASH):
            made += any_byte + b"*" + open_star[1:] if open_star else b""
            open_star = b""
            made += {_BELOW: b"(?:.*/)?", b"**": b".*"}.get(kind, source)
        elif open_star:
            open_star += source
        else:
            made += source
    return made + (any_byte + b"*" + open_star[1:] if open_star else b"")


def _bracket(text: bytes, place: int) -> tuple[bytes, int]:
    """The class that begins behind the ``[`` before `place`, and where the pattern goes on. As in git a ``]`` at the
    beginning is a member, a backslash escapes, and an unknown class name or a missing end matches nothing."""
    negated = text[place : place + 1] in (b"!", b"^")
    place += negated
    members, before, first = b"", b"", True
    while first or text[place : place + 1] != b"]":
        first = False
        byte = text[place : place + 1]
        if byte == b"[" and text[place + 1 : place + 2] == b":" and (named := _named_class(text, place + 2)):
            members, before, place = members + named[0], b"", named[1]
            continue
        if byte == b"-" and before and text[place + 1 : place + 2] not in (b"", b"]"):
            last, place = _member(text, place + 1)
            members += _range(before, last)
            before = b""
            continue
        before, place = _member(text, place)
        members += _escaped(before)
    source = b"[" + (b"^" if negated else b"") + members + b"]"
    return (source if members else (b"." if negated else b"(?!)")), place + 1


def _member(text: bytes, place: int) -> tuple[bytes, int]:
    """The byte at `place`, or behind the backslash there, and the place behind it."""
    place += text[place : place + 1] == b"\\"
    if place >= len(text):
        raise _NeverMatches
    return text[place : place + 1], place + 1


def _named_class(text: bytes, place: int) -> tuple[bytes, int] | None:
    """Members of the class whose name begins at `place`, and the place behind its ``:]``; None when it is no name."""
    end = text.find(b"]", place)
    if end < 0:
        raise _NeverMatches
    if end == place or text[end - 1 : end] != b":":
        return None
    members = _CLASSES.get(text[place : end - 1])
    if members is None:
        raise _NeverMatches
    return members, end + 1


def _range(first: bytes, last: bytes) -> bytes:
    return _escaped(first) + b"-" + _escaped(last) if first <= last else b""


def _escaped(byte: bytes) -> bytes:
    return b"\\x%02x" % byte[0]
