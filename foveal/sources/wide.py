"""UTF-16 and UTF-32, with their marks and without.

A file without a mark is taken for one of them only if it holds NUL bytes (else it is text in other encodings, or could
be) and what it would say is plain: characters of one or two scripts, no controls, nothing unassigned.
"""

from __future__ import annotations

import codecs
import unicodedata

from foveal.sources.guess import is_common, is_of_small_script

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDTHS = {"utf-32-le": 4, "utf-32-be": 4, "utf-16-le": 2, "utf-16-be": 2}
_LEAST = 4
"""Characters from which on text without a mark is recognised."""
_LOOKED_AT = 1000
_MOST_STRANGE = 0.1
_RARE = 0.35
_BLANKS = frozenset("\t\n\v\f\r\x1b\x85")


def marked(raw: bytes) -> tuple[str, int] | None:
    """Encoding and length of the byte-order mark, if there is one."""
    return next(((encoding, len(mark)) for mark, encoding in MARKS if raw.startswith(mark)), None)


def unmarked(head: bytes) -> str | None:
    """The encoding of a file without a mark that begins with `head` and holds NUL bytes, if it is text in one."""
    best: tuple[float, str] | None = None
    for encoding, width in _WIDTHS.items():
        text = _decoded(head[: len(head) - len(head) % width], encoding)
        if text is None or len(text) < _LEAST or not any(character < "\x80" for character in text):
            continue
        found = doubt(text)
        if found <= _MOST_STRANGE and (best is None or found < best[0]):
            best = found, encoding
    return best[1] if best else None


def _decoded(head: bytes, encoding: str) -> str | None:
    """None when it is no text in it; a character that is cut at the end is left out."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(head)
    except UnicodeDecodeError:
        return None


def doubt(text: str) -> float:
    """Share of the characters that speak against this being text: 0.0 to 1.0."""
    text = text[:_LOOKED_AT]
    rare = [character for character in text if is_of_small_script(character)]
    # A script of its own (Tamil, say) has its letters in one or two blocks; wrong guesses scatter.
    one_script = len({ord(character) >> 7 for character in rare}) <= 2
    strange = sum(map(_strange, text)) - (_RARE * len(rare) if one_script else 0)
    return strange / max(1, len(text))


def _strange(character: str) -> float:
    if character < "\x80":
        return 1.0 if character < " " and character not in _BLANKS else 0.0
    category = unicodedata.category(character)
    if category in ("Cc", "Cn", "Cs") or character == "\ufffd":
        return 0.0 if character in _BLANKS else 1.0
    if category == "Co":
        return 0.5
    return _RARE if character.isalpha() and not is_common(character) else 0.0
