"""Citations: whether they are right, and whether the cited lines are what the answer came from.

A citation is a claim, and is put to the test. The text is read again without the lines that the answers cite, and once
more without as many random lines elsewhere; an answer should change in the first case and not in the second. One
reading without them serves all questions of a text, so a check costs two readings however many questions there are.
Random lines are never those of a cue, of its continuation, or cited.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from foveal.evals.bench import Bench
from foveal.evals.material import Documents, Material, lines_of
from foveal.evals.systems.memory import MemoryReader
from foveal.evals.task import Answer, Context, Measured, Measuring, Question, cited
from foveal.evals.tasks.recall import CODE, code_context
from foveal.sources import Document

Lines = Mapping[str, set[int]]
"""Line numbers (from 1) by path."""
_NEAR = (40, 20, 10, 5, 2, 1)
"""Lines around a question's place that random lines keep away from: the first of these that leaves enough of them."""


class Citations(Measuring):
    """First citations of recalls, and the causal check."""

    name = "citations"
    about = "first citations right; the answer changes without the cited lines, not without random ones"
    metric = "citation_accuracy"
    family = CODE

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """The text and the cues of `recall`."""
        return code_context(material, length, count, rng)

    def measure(self, bench: Bench, context: Context, length: int, number: int) -> Iterator[Measured]:
        """``citation_accuracy``; of answers that cite, ``changed_without_cited`` and ``kept_without_random`` (left out
        where the text has too few lines besides: a smaller cut would show nothing)."""
        answers = _ask(bench, context.documents, context.questions)
        named: dict[str, set[int]] = defaultdict(set)
        for answer in answers:
            if answer.citations:
                first = answer.citations[0]
                named[first.path].update(range(first.first_line, first.last_line + 1))
        random_lines = _elsewhere(context, named, random.Random(f"citations {length} {number}"))
        without = _ask(bench, dropped(context.documents, named), context.questions)
        control = _ask(bench, dropped(context.documents, random_lines), context.questions) if random_lines else None
        counts = {"dropped_cited": _count(named), "dropped_random": _count(random_lines)}
        for place, (question, answer) in enumerate(zip(context.questions, answers, strict=True)):
            metrics = {"citation_accuracy": 0.0} | cited(question, [answer])
            if answer.citations:
                metrics["changed_without_cited"] = float(without[place].text != answer.text)
                if control is not None:
                    metrics["kept_without_random"] = float(control[place].text == answer.text)
            detail: dict[str, object] = {"cue": question.cues[0], "place": question.place, "got": answer.text}
            detail |= {"without_cited": without[place].text, **counts}
            if control is not None:
                detail["without_random"] = control[place].text
            yield Measured(place, metrics, detail)


def _ask(bench: Bench, documents: Documents, questions: Sequence[Question]) -> list[Answer]:
    with bench.memory(documents) as memory:
        reader = MemoryReader(memory, "completion")
        return [reader.ask(question)[0] for question in questions]


def dropped(documents: Documents, lines: Lines) -> Documents:
    """The documents without these lines."""
    kept = []
    for document in documents:
        gone = lines.get(document.path, set())
        every = lines_of(document.text, ends=True)
        text = "".join(line for number, line in enumerate(every, start=1) if number not in gone)
        if text:
            kept.append(Document(document.path, text))
    return tuple(kept)


def _elsewhere(context: Context, named: Lines, rng: random.Random) -> Lines:
    """As many lines as are named, far from every question's place and not among them; runs of a few lines. None where
    there are not as many."""
    left = _count(named)
    free = next((lines for near in _NEAR if len(lines := _free(context, named, near)) >= left), None)
    if free is None:
        return {}
    found: dict[str, set[int]] = defaultdict(set)
    while left > 0:
        start = rng.randrange(len(free))
        for path, number in free[start : start + min(4, left)]:
            if number not in found[path]:
                found[path].add(number)
                left -= 1
    return found


def _free(context: Context, named: Lines, near: int) -> list[tuple[str, int]]:
    """Lines that are not named, and not within `near` lines of a question's place."""
    taboo: dict[str, set[int]] = {path: set(lines) for path, lines in named.items()}
    for question in context.questions:
        for place in question.places:
            taboo.setdefault(place.path, set()).update(range(place.first - near, place.last + near))
    return [
        (document.path, number)
        for document in context.documents
        for number in range(1, len(lines_of(document.text)) + 1)
        if number not in taboo.get(document.path, ())
    ]


def _count(lines: Lines) -> int:
    return sum(map(len, lines.values()))
