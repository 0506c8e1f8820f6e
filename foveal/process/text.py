"""Text for a terminal: what could steer it, hide or reorder what is seen is shown as an escape."""

from __future__ import annotations


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
