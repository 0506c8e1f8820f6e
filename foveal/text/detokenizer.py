"""Tokens to text while they are being generated.

What has been shown is never taken back. A character appears when its last byte has come, and text that may still turn
out to be the beginning of a stop string is held back until that is decided. The result does not depend on how tokens
cut the text: it is what one would get from the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from foveal.text.tokenizer import Tokenizer
from foveal.text.wtf8 import complete_prefix, to_text


class StreamingDetokenizer:
    """Token ids to text, one at a time, whole characters only. The pieces joined are ``tokenizer.decode(ids)``."""

    def __init__(self, tokenizer: Tokenizer, *, skip_bytes: int = 0) -> None:
        """`skip_bytes`: bytes at the start that are not shown (what token healing made the model repeat)."""
        self._tokenizer = tokenizer
        self._skip = skip_bytes
        self._pending = b""

    def push(self, token: int) -> str:
        """The text that is complete now (may be empty). Raises `TokenizerError` for an id outside the vocabulary."""
        data = self._tokenizer.token_bytes(token)
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._pending += data[skipped:]
        cut = complete_prefix(self._pending)
        ready, self._pending = self._pending[:cut], self._pending[cut:]
        return to_text(ready)

    def flush(self) -> str:
        """The end: an unfinished character comes out as U+FFFD."""
        rest, self._pending = self._pending, b""
        return to_text(rest)


class StopChecker:
    """Text in pieces to the text before the first stop string.

    The first stop string is the one whose last character comes first; of several that end there, the longest counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises `ValueError` if a stop string is empty."""
        if not all(stops):
            raise ValueError("a stop string is empty; leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found, if any."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.matched is not None

    def push(self, piece: str) -> str:
        """The text that is certain to stand before any stop string (may be empty); empty once stopped."""
        if self.stopped:
            return ""
        text = self._held + piece
        ends = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            _, place, self.matched = min(ends)
            self._held = ""
            return text[:place]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and did not become a stop string; empty once stopped."""
        rest, self._held = self._held, ""
        return rest


class TokenStream:
    """Token ids to the text to show, up to the first stop string: what an engine request needs for its text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_bytes: int = 0) -> None:
        """`skip_bytes` as in `StreamingDetokenizer`; skipped text does not count for stop strings."""
        self._detokenizer = StreamingDetokenizer(tokenizer, skip_bytes=skip_bytes)
        self._checker = StopChecker(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found; the text before it has been returned."""
        return self._checker.stopped

    @property
    def matched(self) -> str | None:
        """The stop string that was found, if any."""
        return self._checker.matched

    def push(self, token: int) -> str:
        """Text that is now certain (may be empty)."""
        return self._checker.push(self._detokenizer.push(token))

    def flush(self) -> str:
        """The text still held back; called once, when generation ends for another reason than a stop string."""
        return self._checker.push(self._detokenizer.flush()) + self._checker.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
