"""An answer as it is told: from its beginning as a sentence to where the model begins to repeat itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from foveal.memory.asking.prompt import begun

_SENTENCE = re.compile(r"\S.*?[.!?](?=\s)|\S.*?(?=\n\n)|\S.*", re.DOTALL)
_FIRST = re.compile(r"[\s,:]*[^\s,:]\S*\s")
_ENDED = re.compile(r"[.!?]\s|\n\n")


class Telling:
    """Takes what a model writes and gives what can be told. Small models say one sentence again and again: what may
    become such a sentence is held back, and where it does, `repeats` is True and nothing more is told."""

    def __init__(self) -> None:
        self.text = ""
        """What was told."""
        self.repeats = False
        self._raw = self._all = ""

    def add(self, text: str) -> Iterator[str]:
        """What is certain now."""
        self._raw += text
        if _FIRST.match(self._raw):  # how the answer begins is known when its first word is
            yield from self._tell(whole=False)

    def end(self) -> Iterator[str]:
        """The rest, when the model has ended."""
        yield from self._tell(whole=True)

    def _tell(self, *, whole: bool) -> Iterator[str]:
        if self.repeats:
            return
        self._all = begun(self._raw)
        said: set[str] = set()
        limit = len(self._all)
        for match in _SENTENCE.finditer(self._all):
            ended = whole or _ENDED.match(self._all, match.end() - 1) or self._all.startswith("\n\n", match.end())
            sentence = match[0].rstrip()
            if ended and sentence in said:
                self.repeats, limit = True, match.start()
                break
            if not ended and any(one.startswith(sentence) for one in said):
                limit = match.start()
                break
            said.add(sentence)
        # White space waits for what follows it: nothing may.
        piece = self._all[len(self.text) : len(self._all[:limit].rstrip())]
        if piece:
            self.text += piece
            yield piece
