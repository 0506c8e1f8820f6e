"""Strings to bytes and back, lone surrogates included.

Python strings may hold lone surrogates (undecodable file names, broken JSON), which UTF-8 forbids. They become their
three WTF-8 bytes and come back as they were; any other malformed byte becomes U+FFFD. Decoding can be cut wherever a
character ends (`complete_prefix`), and the pieces are then what the whole gives.
"""

from __future__ import annotations

import codecs

_HANDLER = "foveal-wtf8"
_REPLACEMENT = "\ufffd"


def to_bytes(text: str) -> bytes:
    """UTF-8, with lone surrogates as three bytes each."""
    return text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """The inverse of `to_bytes`; malformed bytes become U+FFFD, as Python's "replace" does."""
    return data.decode("utf-8", _HANDLER)


def complete_prefix(data: bytes) -> int:
    """How many bytes from the start can be decoded now, whatever follows: all but an unfinished last character."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if not 0x80 <= byte < 0xC0:
            return len(data) - back if _length(byte) > back else len(data)
    return len(data)


def _length(lead: int) -> int:
    if 0xC2 <= lead <= 0xDF:
        return 2
    if 0xE0 <= lead <= 0xEF:
        return 3
    return 4 if 0xF0 <= lead <= 0xF4 else 1


def _decode_error(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    data, start = error.object, error.start
    is_surrogate = (
        data[start] == 0xED
        and len(data) > start + 2
        and 0xA0 <= data[start + 1] <= 0xBF
        and 0x80 <= data[start + 2] <= 0xBF
    )
    if is_surrogate:
        return chr(0xD000 | (data[start + 1] & 0x3F) << 6 | data[start + 2] & 0x3F), start + 3
    return _REPLACEMENT, error.end


codecs.register_error(_HANDLER, _decode_error)
