"""Bytes out: JSON, and server-sent events."""

from __future__ import annotations

import json
import re
import secrets
import time
from typing import Any

import msgspec
from starlette.responses import Response

_SURROGATES = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder().encode


def dumps(value: Any) -> bytes:
    """JSON in UTF-8. Lone surrogates, which a model may write and no strict reader takes, become U+FFFD."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return _SURROGATES.sub("\ufffd", text).encode()


def sse(value: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    return head + b"data: " + dumps(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"


class JSONBytes(Response):
    """A JSON answer by `dumps`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def new_id(prefix: str) -> str:
    """A name that is given once."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
