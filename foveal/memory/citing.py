"""Citations of a text that is written behind a memory, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from foveal.batch import Event
from foveal.memory.citations import CONTEXT_TOKENS, Citation, TokenOrigin, cite, origin_of
from foveal.memory.memory import Memory


class Citing:
    """Gathers where the tokens of one reply looked; the events are those of a request with `trace`."""

    def __init__(self, memory: Memory, prompt: Sequence[int], *, source: int | None = None) -> None:
        """The reply stands behind the first `source` tokens of `memory` (default: all) and the ids of `prompt`."""
        self._memory, self._text = memory, list(prompt)
        self._source = memory.sequence.token_range(0, memory.length if source is None else source)
        self._origins: list[TokenOrigin] = []

    def add(self, events: Iterable[Event]) -> None:
        """Take the traces of events in."""
        length = len(self._source)
        for event in events:
            if event.sampled is None or not event.is_output:
                continue
            origin = origin_of(event.trace, length + len(self._text) - 1, length)
            before = np.array(self._text[-CONTEXT_TOKENS:], dtype=self._source.dtype)
            self._origins.append(origin.supporting(event.sampled.token, before, self._source))
            self._text.append(event.sampled.token)

    def citations(self) -> tuple[Citation, ...]:
        """The lines, largest share first."""
        return cite(self._origins, self._memory.place, len(self._source))
