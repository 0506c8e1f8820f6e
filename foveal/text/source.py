"""A reply's text as it arrives, in which every character is known to come from a control token or not.

A tag such as ``<｜DSML｜invoke`` is found only where its control token was really sampled. The same letters spelled out
in plain tokens are text. What may still become a tag is told (`partial`), so that a parser can hold it back, and
nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from foveal.text.tokenizer import Tokenizer

PLAIN, CONTROL, SHOWN = "p", "c", "s"
"""Kinds of characters: plain text; of a control token that is never shown; of an added token that is shown."""


@dataclass(frozen=True)
class Tag:
    """A literal of the markup, and the kind of each of its characters."""

    text: str
    kinds: str


class TagSet:
    """Tags that are looked for together."""

    def __init__(self, tags: Iterable[Tag]) -> None:
        self.tags = tuple(tags)
        letters = "".join(re.escape(letter) for letter in sorted({tag.text[0] for tag in self.tags}))
        self.start = re.compile(f"[{letters}]" if letters else r"(?!)")
        """What one of them begins with: most texts hold none."""

    def __contains__(self, tag: Tag) -> bool:
        return tag in self.tags


class Alphabet:
    """Which tokens of a vocabulary are control, and of what kind the characters of a literal are."""

    def __init__(self, tokenizer: Tokenizer, hidden: Iterable[int]) -> None:
        """`hidden`: ids of the control tokens that are never shown; the other added tokens are."""
        self.hidden = frozenset(hidden)
        self._control = tokenizer.control_tokens
        names = sorted(self._control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def kind(self, token: int) -> str:
        """The kind of a control token's characters."""
        return CONTROL if token in self.hidden else SHOWN

    def split(self, text: str) -> list[tuple[str, bool]]:
        """A text cut into plain pieces and control tokens (True), as the model samples them."""
        pieces: list[tuple[str, bool]] = []
        place = 0
        for match in self._pattern.finditer(text):
            pieces += [(text[place : match.start()], False), (match.group(), True)]
            place = match.end()
        return [piece for piece in [*pieces, (text[place:], False)] if piece[0]]

    def tag(self, text: str) -> Tag:
        """`text` as the model samples it: its control tokens as such, the rest plain."""
        pieces = self.split(text)
        return Tag(text, "".join((self.kind(self._control[p]) if control else PLAIN) * len(p) for p, control in pieces))


class Source:
    """What has arrived and was not taken yet. `literal`: kinds are unknown (text without ids); tags match any text."""

    def __init__(self, *, literal: bool = False) -> None:
        self.text = ""
        self.kinds = ""
        self.final = False
        """Whether nothing more will come."""
        self._literal = literal
        self._raw: list[str] | None = None

    def add(self, text: str, kind: str) -> None:
        """More has arrived."""
        self.text += text
        self.kinds += kind * len(text)

    def take(self, count: int) -> tuple[str, str]:
        """The first `count` characters and their kinds; they are gone from the source."""
        taken = self.text[:count], self.kinds[:count]
        self.text, self.kinds = self.text[count:], self.kinds[count:]
        if self._raw is not None:
            self._raw.append(taken[0])
        return taken

    def record(self) -> None:
        """From now on, remember what is taken."""
        self._raw = []

    def recorded(self) -> str:
        """What was taken since `record`; ends the recording."""
        raw, self._raw = "".join(self._raw or ()), None
        return raw

    def find(self, tag: Tag, start: int = 0) -> int:
        """Where `tag` begins first, or -1."""
        place = self.text.find(tag.text, start)
        while place >= 0 and not self._agrees(tag, place, len(tag.text)):
            place = self.text.find(tag.text, place + 1)
        return place

    def first(self, tags: TagSet) -> tuple[int, Tag | None]:
        """Where the first of the tags begins, and which; of several there the longest. (-1, None) without one, and
        while a longer one may still come there."""
        if not tags.start.search(self.text):
            return -1, None
        found = [(place, -len(tag.text), tag) for tag in tags.tags if (place := self.find(tag)) >= 0]
        if not found:
            return -1, None
        place, _, tag = min(found, key=lambda entry: entry[:2])
        open_ = any(self.begins(other, place) is None for other in tags.tags)
        return (-1, None) if open_ else (place, tag)

    def partial(self, tags: TagSet) -> int:
        """How many characters at the end may still become one of the tags. 0 once the source is final."""
        if self.final or not tags.start.search(self.text):
            return 0
        return max(self._partial(tag) for tag in tags.tags)

    def begins(self, tag: Tag, start: int = 0) -> bool | None:
        """Whether `tag` stands at `start`; None while that is open."""
        size = max(0, min(len(tag.text), len(self.text) - start))
        if not self.text.startswith(tag.text[:size], start) or not self._agrees(tag, start, size):
            return False
        if size == len(tag.text):
            return True
        return False if self.final else None

    def _partial(self, tag: Tag) -> int:
        for size in range(min(len(self.text), len(tag.text) - 1), 0, -1):
            if self.text.endswith(tag.text[:size]) and self._agrees(tag, len(self.text) - size, size):
                return size
        return 0

    def _agrees(self, tag: Tag, place: int, size: int) -> bool:
        return self._literal or self.kinds[place : place + size] == tag.kinds[:size]
