"""Bytes to text, whatever they are.

Nothing raises. Text in any encoding is decoded as well as can be told, and says how; no guess changes a byte below
0x80, but where such a byte is the second half of an East Asian character. What is not text is recognised as git does,
from the first bytes, so that a huge binary is never read.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from foveal.sources import wide

HEAD_BYTES = 8000
"""How much of a file is looked at to tell whether it is text: what git looks at."""

_CONTROL = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")
_DECLARED = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_UTF8 = re.compile(rb"([\xc2-\xdf][\x80-\xbf])|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_RUN = re.compile(rb"[\x80-\xff]+")
_MOST_CONTROL = 0.05
_BY_CHANCE = 8
"""So few whole characters of UTF-8 may come about by chance in another encoding."""


@dataclass(frozen=True)
class Decoded:
    """A file's text, the encoding it was read in, and how many replacement characters stand for malformed bytes."""

    text: str
    encoding: str
    replaced: int = 0


def binary_reason(head: bytes) -> str | None:
    """Why a file that begins with `head` is not text, or None if it may be."""
    head = head[:HEAD_BYTES]
    found = wide.marked(head)
    if found and found[0] != "utf-8":
        return None
    if b"\0" in head:
        return None if not found and wide.unmarked(head) else "binary file (holds NUL bytes)"
    if len(_CONTROL.findall(head)) > _MOST_CONTROL * len(head):
        return "binary file (mostly control characters)"
    return None


def decode(raw: bytes) -> Decoded | str:
    """The text in `raw`, or the reason why it is not text. Never raises.

    Tried in turn: a byte-order mark; UTF-16 or UTF-32 without one; UTF-8; UTF-8 with a few damaged places; the encoding
    that a ``coding:`` comment declares; a guess (`foveal.sources.guess`).
    """
    found = wide.marked(raw)
    if found and found[0] != "utf-8":
        return _decode_wide(raw[found[1] :], found[0])
    head = raw[:HEAD_BYTES]
    if not found and b"\0" in head and (encoding := wide.unmarked(head)):
        return _decode_wide(raw, encoding)
    reason = binary_reason(head) or _payload_reason(raw)
    if reason:
        return reason
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return Decoded(raw.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        return _replacing(raw, "utf-8") if found else _not_utf8(raw)


def _payload_reason(raw: bytes) -> str | None:
    """Text that ends as a binary (a script with an archive behind it) is none. A stray NUL does not make it one."""
    tail = raw[-HEAD_BYTES:] if len(raw) > HEAD_BYTES else b""
    return "binary file (begins as text)" if len(_CONTROL.findall(tail)) > _MOST_CONTROL * len(tail) else None


def _decode_wide(raw: bytes, encoding: str) -> Decoded | str:
    decoded = _replacing(raw, encoding)
    sample = decoded.text[: HEAD_BYTES // 2]
    if "\0" in sample or wide.doubt(sample) > _MOST_CONTROL * 2:
        return f"binary file (begins like {encoding}, but is no text)"
    return decoded


def _replacing(raw: bytes, encoding: str) -> Decoded:
    try:
        return Decoded(raw.decode(encoding), _name(encoding))
    except UnicodeDecodeError:
        text = raw.decode(encoding, "replace")
        held = text.count("\ufffd") - raw.decode(encoding, "ignore").count("\ufffd")
        return Decoded(text, _name(encoding), max(1, held))


def _not_utf8(raw: bytes) -> Decoded:
    from foveal.sources import guess

    whole, weight, broken = _utf8_evidence(raw)
    plain = "".join(match[0].decode("utf-8", "ignore") for match in _UTF8.finditer(raw))
    plausible = guess.is_of_one_script(plain)
    if weight >= 4 * broken and (plausible or whole > _BY_CHANCE):
        return _replacing(raw, "utf-8")
    declared = _declared(raw)
    if declared is not None:
        return declared
    encoding = guess.guess(raw)
    if whole >= broken and not guess.is_asian(encoding) and plausible:
        return _replacing(raw, "utf-8")  # two bytes of UTF-8 are a capital and a sign elsewhere
    found = _replacing(raw, guess.codec(raw, encoding))
    return Decoded(found.text, _name(encoding), found.replaced)


def _utf8_evidence(raw: bytes) -> tuple[int, int, int]:
    """Whole characters of UTF-8 (surrogates too), what they weigh as evidence, and the places that are none."""
    whole = weight = 0
    for match in _UTF8.finditer(raw):
        whole += 1
        weight += 1 if match[1] else 3
    return whole, weight, len(_RUN.findall(_UTF8.sub(b" ", raw)))


def _declared(raw: bytes) -> Decoded | None:
    """The encoding that one of the first two lines declares (PEP 263), if there is such a one and it fits."""
    for line in raw[:HEAD_BYTES].split(b"\n", 2)[:2]:
        match = _DECLARED.match(line)
        if match:
            return _strictly(raw, match.group(1).decode("ascii", "replace"))
    return None


def _strictly(raw: bytes, encoding: str) -> Decoded | None:
    try:
        return Decoded(raw.decode(encoding), _name(encoding))
    except (UnicodeError, LookupError):
        return None


def _name(encoding: str) -> str:
    """Its common name: `euc-jp`, `iso-8859-1`, `cp1252`."""
    return codecs.lookup(encoding).name.replace("_", "-").replace("iso8859", "iso-8859")
