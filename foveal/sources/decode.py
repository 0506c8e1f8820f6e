"""Bytes to text, whatever they are.

What is special here: nothing raises. Text in any encoding is decoded as well as can be told, and says how; what is not
text is recognised from the first few kilobytes, so that a huge binary is never read.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

import charset_normalizer

HEAD_BYTES = 8192
"""How much of a file is looked at to tell whether it is text."""

_SAMPLE_BYTES = 65536
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL = re.compile(rb"[\x01-\x07\x0e-\x1a\x1c-\x1f\x7f]")
_HIGH = re.compile(rb"[\x80-\xff]")
_LONE_HIGH = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
_DECLARED = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Decoded:
    """A file's text, the encoding it was read in, and how many malformed sequences became U+FFFD."""

    text: str
    encoding: str
    replaced: int = 0


def binary_reason(head: bytes) -> str | None:
    """Why a file that begins with `head` is not text, or None if it may be."""
    if _encoding_by_marks(head):
        return None
    if b"\0" in head:
        return "binary file (holds NUL bytes)"
    if len(_CONTROL.findall(head)) > 0.05 * len(head):
        return "binary file (mostly control characters)"
    return None


def decode(raw: bytes) -> Decoded | str:
    """The text in `raw`, or the reason why it is not text. Never raises.

    Tried in turn: a byte-order mark (or UTF-16 without one), UTF-8, UTF-8 with a few damaged places, the encoding a
    ``coding:`` comment declares, Windows-1252 if accents stand alone, charset-normalizer's guess from the first
    64 KiB, Latin-1.
    """
    marked = _encoding_by_marks(raw)
    if marked:
        encoding, size = marked
        return _decode_marked(raw[size:], encoding)
    reason = binary_reason(raw[:HEAD_BYTES]) or binary_reason(raw[-HEAD_BYTES:])
    if reason or b"\0" in raw:
        return reason or "binary file (holds NUL bytes)"
    try:
        return Decoded(raw.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        return _damaged_utf8(raw) or _declared(raw) or _guessed(raw)


def _encoding_by_marks(raw: bytes) -> tuple[str, int] | None:
    """Encoding and length of the byte-order mark; also UTF-16 without a mark, if nearly every other byte is zero."""
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return encoding, len(mark)
    head = raw[: HEAD_BYTES - HEAD_BYTES % 2]
    half = len(head) // 2
    if half >= 8 and head.count(0) >= 0.7 * half:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if min(even, odd) == 0:
            return ("utf-16-le" if odd else "utf-16-be"), 0
    return None


def _decode_marked(raw: bytes, encoding: str) -> Decoded | str:
    text, replaced = _replacing(raw, encoding)
    sample = text[:HEAD_BYTES]
    strange = sum(not (c.isprintable() or c.isspace()) or c == "\ufffd" for c in sample)
    if strange > 0.1 * len(sample) or "\0" in text:
        return f"binary file (begins like {encoding}, but is no text)"
    return Decoded(text, encoding, replaced)


def _replacing(raw: bytes, encoding: str) -> tuple[str, int]:
    try:
        return raw.decode(encoding), 0
    except UnicodeDecodeError:
        text = raw.decode(encoding, "replace")
        return text, max(1, text.count("\ufffd") - raw.decode(encoding, "ignore").count("\ufffd"))


def _damaged_utf8(raw: bytes) -> Decoded | None:
    """UTF-8 with damage: if there are more whole multi-byte characters than broken ones."""
    text, replaced = _replacing(raw, "utf-8")
    whole = sum(byte >= 0xC0 for byte in raw) - replaced
    return Decoded(text, "utf-8", replaced) if whole > 2 * replaced else None


def _declared(raw: bytes) -> Decoded | None:
    """The encoding that one of the first two lines declares (PEP 263), if there is such a one and it fits."""
    match = _DECLARED.search(b"\n".join(raw[:HEAD_BYTES].splitlines()[:2]))
    return _strictly(raw, match.group(1).decode("ascii", "replace")) if match else None


def _guessed(raw: bytes) -> Decoded:
    """Western European when high bytes stand alone (accents between letters), otherwise charset-normalizer's guess."""
    high = len(_HIGH.findall(raw))
    if len(_LONE_HIGH.findall(raw)) > 0.75 * high:
        return _strictly(raw, "cp1252") or Decoded(raw.decode("latin-1"), "latin-1")
    best = charset_normalizer.from_bytes(raw[:_SAMPLE_BYTES]).best()
    decoded = _strictly(raw, best.encoding) if best else None
    return decoded or Decoded(raw.decode("latin-1"), "latin-1")


def _strictly(raw: bytes, encoding: str) -> Decoded | None:
    try:
        text = raw.decode(encoding)
    except (UnicodeError, LookupError):
        return None
    return Decoded(text, codecs.lookup(encoding).name)
