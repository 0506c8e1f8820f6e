"""Places that may hold an answer: proposed by attention and by the search, merged, and widened to what reads as one.

Lists with an order of their own are merged by reciprocal rank fusion (Cormack, Clarke and
Buettcher 2009): a place counts 1 / (60 + rank) for each list that it is in, times the list's weight, whatever the
lists' own numbers mean. What was said in a conversation's turns stands beside them, place by place: questions of
earlier turns, which are short and full of the same words, must not crowd out what they asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from foveal.memory.asking.attention import looked_at
from foveal.memory.asking.passages import Passage, heading_of, passages
from foveal.memory.asking.text_index import MOST_HITS, Hit, TextIndex
from foveal.memory.asking.texts import FileText, MemoryTexts
from foveal.memory.asking.widening import widened
from foveal.memory.asking.words import stems, telling

if TYPE_CHECKING:
    from foveal.memory.memory import Memory

FUSED = 60
"""What is added to a rank before it is inverted."""
WEIGHTS = {"search": 1.0, "attention": 0.1}
"""What a rank in each list counts (docs/ask.md has the measurements)."""
LOOKED = 12
"""Places that attention may propose."""
LEAST = 32
"""Tokens that a place may take at least; what is cut to less says nothing."""
ASKING = ("?", "\uff1f", "\u061f")
"""What a question ends with."""
NEAR = 0.75
"""Share of its list's best score that a place must have: what is further off would only distract the model."""


@dataclass(frozen=True)
class Found:
    """A place: lines `first_line` to `last_line` (from 1, both included) of `path`, which say `text`.

    `score`: by which places were ordered. `ranks`: its rank (from 1) in each list that proposed it, by name.
    `title`: headings or definitions over it. `tokens`: of the chat model, 0 where they were not counted.
    `numbers`: the number of each line of `text`, where the file has lines between them that were not read (a notebook);
    else empty.
    """

    path: str
    first_line: int
    last_line: int
    text: str
    score: float
    ranks: dict[str, int] = field(default_factory=dict)
    title: str = ""
    tokens: int = 0
    numbers: tuple[int, ...] = ()

    def line(self, index: int) -> int:
        """The number of the line that stands at `index` (from 0) in `text`."""
        return self.numbers[index] if self.numbers else self.first_line + index

    def shown(self, first: int, last: int) -> list[tuple[int, str]]:
        """The lines `first` to `last` of the file, both included, as far as they are in it, each with its number."""
        lines = enumerate(self.text.split("\n"))
        return [(number, line) for index, line in lines if first <= (number := self.line(index)) <= last]

    def __str__(self) -> str:
        lines = f"{self.first_line}-{self.last_line}" if self.last_line > self.first_line else f"{self.first_line}"
        return f"{self.path}:{lines}"


@dataclass(frozen=True)
class _Proposal:
    """Characters of a document."""

    document: int
    start: int
    end: int
    score: float
    ranks: dict[str, int]


Key = tuple[int, int, int]
"""A place: its document, and where in it the place begins and ends."""
Count = Callable[[str], int]
"""Tokens that a text takes."""


class Finder:
    """Finds places in one memory. Not safe to use from several threads."""

    def __init__(self, memory: Memory) -> None:
        """Makes the index where there is none. Raises what `TextIndex.of` does."""
        self._memory = memory
        self._texts = MemoryTexts(memory)
        self._index = TextIndex.of(memory, self._texts)
        self._turns = frozenset(self._texts.turns)
        self._numbers = self._turns.union(self._texts.documents)

    def __enter__(self) -> Finder:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._index.close()

    def find(
        self,
        question: str,
        most: int,
        budget: int,
        count: Count,
        *,
        attention: bool = True,
        search: bool = True,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Found]:
        """At most `most` places, best first, which take at most `budget` tokens together (by `count`); none once
        `should_stop` says so."""
        lists: dict[str, list[Key]] = {}
        said: list[Key] = []
        if search:
            found = _near(self._index.search(question))
            lists["search"] = [key for key in found if key[0] in self._numbers]  # a damaged index says anything
            said = _near(self._said(question))
        if attention and (lists.get("search") or not said):
            found = self._looked_at(question, should_stop)
            # What it finds in turns repeats the question; it counts only where nothing else is found.
            lists["attention"] = [key for key in found if not said or key[0] not in self._turns]
        if should_stop():
            return []
        return self._chosen(self._beside(_fused(lists), _fused({"turns": said}), question), most, budget, count)

    def _beside(self, read: list[_Proposal], said: list[_Proposal], question: str) -> list[_Proposal]:
        """What was read and what was said, one after the other; that first which holds more of the question's words."""
        first, second = read, said
        if read and said and self._held(said[0], question) > self._held(read[0], question):
            first, second = said, read
        return [one for pair in zip_longest(first, second) for one in pair if one is not None]

    def _held(self, place: _Proposal, question: str) -> int:
        """How many of the question's words a place holds."""
        text = self._texts.file(place.document).text[place.start : place.end]
        return len(telling(question) & set(stems(text)))

    def _said(self, question: str) -> list[Hit]:
        """What was said in turns of a conversation, each thing once, but for the question itself."""
        if not self._turns:
            return []
        with closing(TextIndex.of_turns(self._texts)) as index:
            hits = index.search(question, most=MOST_HITS + len(self._turns))
        new: dict[str, Hit] = {}
        for hit in hits:
            if len(new) < MOST_HITS and not self._repeats(hit.document, hit.start, hit.end, question):
                new.setdefault(self._texts.file(hit.document).text[hit.start : hit.end].casefold(), hit)
        return list(new.values())

    def _repeats(self, document: int, start: int, end: int, question: str) -> bool:
        """Whether a part of a turn asks what the question asks, and says nothing beside."""
        said = self._texts.file(document).text[start:end].rstrip()
        if document not in self._turns or not telling(said) <= set(stems(question)):
            return False
        return said.endswith(ASKING) or stems(said) == stems(question)

    def _chosen(self, proposals: list[_Proposal], most: int, budget: int, count: Count) -> list[Found]:
        places: list[Found] = []
        taken: list[Key] = []
        left, most = budget, min(most, max(1, budget // LEAST))
        for proposal in proposals:
            if len(places) == most:
                break
            if any(_overlap(proposal, one) for one in taken):
                continue
            file = self._texts.file(proposal.document)
            room = max(1, min(left, max(budget // most, budget // 2 if not places else 0)))
            heading = heading_of(file.path)
            span = widened(file.text, proposal.start, proposal.end, room, count, heading)
            if any(_overlap(replace(proposal, start=span.start, end=span.end), one) for one in taken):
                own = min(room, count(file.text[proposal.start : proposal.end]))
                span = widened(file.text, proposal.start, proposal.end, own, count, heading)  # no wider than it was
            place = _place(file, span, proposal, count)
            cut = span.end < proposal.end and room < LEAST
            if not place.text.strip() or (places and (cut or place.tokens > left)):
                continue
            left -= place.tokens
            places.append(place)
            taken.append((proposal.document, span.start, span.end))
        return places

    def _looked_at(self, question: str, should_stop: Callable[[], bool]) -> list[Key]:
        """The passages that attention came to, best first."""
        found: dict[Key, float] = {}
        cut: dict[int, list[Passage]] = {}
        for token, count in looked_at(self._memory, question, should_stop):
            document = self._memory.places.document_at(token)
            if document not in self._numbers:
                continue
            file = self._texts.file(document)
            line = self._memory.places.locate(token).line
            if not line:
                continue
            if document not in cut:
                cut[document] = passages(file.text, heading_of(file.path))
            character = int(file.edges[min(line, len(file.edges) - 1) - 1])
            near = next((one for one in cut[document] if one.start <= character < one.end), None)
            if near is not None and not self._repeats(document, near.start, near.end, question):
                key = (document, near.start, near.end)
                found[key] = found.get(key, 0.0) + count
            if len(found) >= 4 * LOOKED:
                break
        best = max(found.values(), default=0.0)
        kept = [key for key in found if found[key] >= NEAR * best]
        return sorted(kept, key=lambda key: -found[key])[:LOOKED]


def _near(hits: Sequence[Hit]) -> list[Key]:
    """Those whose score comes near to the first one's."""
    return [(hit.document, hit.start, hit.end) for hit in hits if hit.score >= NEAR * hits[0].score]


def _fused(lists: dict[str, list[Key]]) -> list[_Proposal]:
    """The places of the search in the order that all lists give them; where it found none, those of attention."""
    merged: dict[Key, _Proposal] = {}
    for name, proposed in lists.items():
        for rank, key in enumerate(proposed, start=1):
            known = merged.get(key, _Proposal(*key, 0.0, {}))
            score = known.score + WEIGHTS.get(name, 1.0) / (FUSED + rank)
            merged[key] = replace(known, score=score, ranks={**known.ranks, name: rank})
    found = [one for one in merged.values() if "search" in one.ranks or not lists.get("search")]
    return sorted(found, key=lambda one: (-one.score, one.document, one.start))


def _overlap(one: _Proposal, taken: Key) -> bool:
    document, start, end = taken
    return one.document == document and one.start < end and start < one.end


def _place(file: FileText, span: Passage, proposal: _Proposal, count: Count) -> Found:
    whole = file.text[span.start : span.end]
    text = whole.strip("\n")
    start = span.start + len(whole) - len(whole.lstrip("\n"))
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    numbers = tuple(file.line_at(start + each) for each in starts)
    together = numbers == tuple(range(numbers[0], numbers[0] + len(numbers)))
    return Found(
        file.path,
        numbers[0],
        numbers[-1],
        text,
        proposal.score,
        proposal.ranks,
        span.title,
        count(text),
        () if together else numbers,
    )
