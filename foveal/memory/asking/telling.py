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
        self._raw = ""

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
        everything = begun(self._raw)
        said: set[str] = set()
        limit = len(everything)
        for match in _SENTENCE.finditer(everything):
            ended = whole or _ENDED.match(everything, match.end() - 1) or everything.startswith("\n\n", match.end())
            sentence = match[0].rstrip()
            if ended and sentence in said:
                self.repeats, limit = True, match.start()
                break
            if not ended and any(one.startswith(sentence) for one in said):
                limit = match.start()
                break
            said.add(sentence)
        # White space waits for what follows it: nothing may.
        piece = everything[len(self.text) : len(everything[:limit].rstrip())]
        if piece:
            self.text += piece
            yield piece
