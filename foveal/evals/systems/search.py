"""What a plain search of the text would have found: the baseline that costs nothing.

It is grep first. Where a cue stands in the text, the answer is what follows it, everywhere it stands (whole lines
before parts of lines). Only where no cue stands there are the passages ranked by BM25 (Robertson and Zaragoza 2009, k1
1.2, b 0.75) for the question's words, and the best one is the answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from foveal.evals.material import Documents, lines_of
from foveal.evals.task import Answer, Question
from foveal.memory import Citation

FOLLOWING = 2_000
"""Characters shown after a hit."""
MOST_HITS = 16
PASSAGE_LINES = 8
_K1, _B = 1.2, 0.75
_WORD = re.compile(r"[A-Za-z]+|[0-9]+")


class SearchSystem:
    """Search the text for each cue, else rank its passages."""

    name = "search"
    identity = "search 1"

    def takes(self, length: int) -> bool:
        return True

    @contextmanager
    def reading(self, documents: Documents) -> Iterator[SearchReader]:
        yield SearchReader(documents)


class SearchReader:
    """One text to be searched."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def ask(self, question: Question) -> list[Answer]:
        found = [self._grep(cue, question.stop) for cue in question.cues]
        return [answer if answer is not None else self._best(question) for answer in found]

    def _grep(self, cue: str, stop: tuple[str, ...]) -> Answer | None:
        hits = list(self._hits(cue))[:MOST_HITS]
        if not hits:
            return None
        texts = []
        for _, document, end in hits:
            following = document[end : end + FOLLOWING]
            cut = min((at for s in stop if (at := following.find(s)) >= 0), default=len(following))
            texts.append(following[:cut])
        path, document, end = hits[0]
        line = document.count("\n", 0, end) + 1
        return Answer("\n".join(texts), None, (Citation(path, line, line, 1.0),))

    def _hits(self, cue: str) -> Iterator[tuple[str, str, int]]:
        """Path, text and the place after the cue, whole lines first."""
        for pattern in (rf"(?m)^{re.escape(cue)}$", re.escape(cue)):
            hits = [(d.path, d.text, m.end()) for d in self._documents for m in re.finditer(pattern, d.text)]
            if hits:
                yield from hits
                return

    def _best(self, question: Question) -> Answer:
        words = set(_words(question.search or question.ask))
        passages, average, seen = self._passages, self._average, self._documents_with
        best, best_score = 0, -1.0
        for number, (_, _, _, counts, size) in enumerate(passages):
            score = 0.0
            for word in words & counts.keys():
                rarity = math.log(1 + (len(passages) - seen[word] + 0.5) / (seen[word] + 0.5))
                often = counts[word] * (_K1 + 1) / (counts[word] + _K1 * (1 - _B + _B * size / average))
                score += rarity * often
            if score > best_score:
                best, best_score = number, score
        path, line, text, _, _ = passages[best]
        return Answer(text, None, (Citation(path, line, line + text.count("\n"), 1.0),))

    @cached_property
    def _passages(self) -> list[tuple[str, int, str, Counter[str], int]]:
        """Path, first line, text, words and number of words of every `PASSAGE_LINES` lines, half overlapping."""
        made = []
        for document in self._documents:
            lines = lines_of(document.text)
            for first in range(0, max(1, len(lines)), PASSAGE_LINES // 2):
                text = "\n".join(lines[first : first + PASSAGE_LINES])
                counts = Counter(_words(text))
                made.append((document.path, first + 1, text, counts, counts.total()))
        return made

    @cached_property
    def _average(self) -> float:
        return max(1.0, sum(passage[4] for passage in self._passages) / len(self._passages))

    @cached_property
    def _documents_with(self) -> Counter[str]:
        return Counter(word for passage in self._passages for word in passage[3])


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]
