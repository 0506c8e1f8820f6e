"""Text from and for people: numbers, and what a terminal may be given, where all that could steer it is an escape."""

from __future__ import annotations

from foveal.errors import ParameterError


def printable(text: str, keep: str = "") -> str:
    r"""`text` as a terminal may be given it: what would steer it, or hide or reorder what is seen, becomes an escape.

    That are control characters (newline and tab too, unless `keep` has them), marks of direction, invisible format
    characters, and the lone surrogates that stand for bytes in file names: ``\n``, ``\x1b``, ``\u202e``, ``\udcff``.
    """
    if text.isascii() and text.isprintable():
        return text
    import unicodedata

    def shown(place: int, character: str) -> str:
        if character in keep or unicodedata.category(character) not in _HIDDEN or _joins(text, place):
            return character
        return character.encode("unicode_escape").decode("ascii")

    return "".join(shown(place, character) for place, character in enumerate(text))


_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of Unicode: control, format, surrogate, and the separators of lines and paragraphs."""


def _joins(text: str, place: int) -> bool:
    """Whether a joiner stands there between two letters of a script that is written with it (or two emoji)."""
    if text[place] not in "\u200c\u200d" or not 0 < place < len(text) - 1:
        return False
    return text[place - 1] > "\u00ff" and text[place + 1] > "\u00ff" and text[place + 1] not in "\u200c\u200d"


def one_line(text: str) -> str:
    """The words of `text`, one blank between them, as `printable`."""
    return printable(" ".join(text.split()))


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MOST = 1 << 63


def parse_count(text: str) -> int:
    """A number with an optional binary suffix: ``4096``, ``128k``, ``1M`` (1,048,576), ``64KiB``.

    Raises `ParameterError` for anything else.
    """
    import re
    from fractions import Fraction

    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kKmMgGtT]?)(?:i?[bB])?\s*", text)
    if match is None:
        raise ParameterError(f"{text!r} is not a number; write one like 4096, 128k or 1M")
    count = Fraction(re.sub("[_,]", "", match[1])) * _UNITS[match[2].lower()]
    if count >= _MOST:
        raise ParameterError(f"{text!r} is too large a number")
    return int(count)
