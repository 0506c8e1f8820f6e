"""Where each token of a reply looked, as JSON."""

from __future__ import annotations

import codecs
from typing import Any

from foveal.aio import Event
from foveal.memory import Memory
from foveal.memory.looks import WINDOW_STEP, look_of

Json = dict[str, Any]


class Looking:
    """The looks of one reply's tokens, in order. The events are those of a request with `trace`."""

    def __init__(self, memory: Memory, prompt_tokens: int) -> None:
        """The reply stands behind `memory` and `prompt_tokens` more."""
        self._engine = memory.engine
        self._position = memory.length + prompt_tokens - 1
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def told(self, event: Event, shown: bool) -> Json | None:
        """Where the token of `event` looked; None if it is not `shown`. Call it for every token that was sampled."""
        position, self._position = self._position, self._position + 1
        if event.sampled is None or not shown:
            return None
        look = look_of(event.trace, position, self._engine.config.num_attention_heads)
        return {
            "text": self._text.decode(self._engine.tokenizer.token_bytes(event.sampled.token)),
            "position": look.position,
            "window": {"first": look.window_first, "span": WINDOW_STEP, "share": _rounded(look.window)},
            "picks": [[start, _short(share)] for start, share in look.picks],
            "overview": {"span": look.overview_span, "share": _rounded(look.overview)},
        }


def _rounded(shares: Any) -> list[float]:
    return [_short(share) for share in shares]


def _short(share: float) -> float:
    """Three digits, wherever they begin: the picks of the first tokens after a cue have very small shares."""
    return float(f"{share:.3g}")
