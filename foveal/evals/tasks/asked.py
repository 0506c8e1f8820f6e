"""Questions in plain words, asked of a text in which their answers stand far back: `story`, `facts` and `turns`.

Everything that is asked stands in the first tenth of the text, in lines of real text (Python's library, or whatever
`--source` names), so nearly the whole length lies between. Answers are scored in words: the right value must stand in
the answer, letter case, articles and punctuation aside.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence

from foveal.evals.errors import EvalError
from foveal.evals.lives import Asked, Life, lives, records
from foveal.evals.material import TEXT_PATH, Documents, Material, mixed
from foveal.evals.task import Answer, Asking, Context, Metrics, Question, Where, cited
from foveal.sources import Document

FIRST_PART = 0.1
"""Share of a text in which all that is asked stands."""
MAX_TOKENS = 48
"""Of an answer as it should be; one that rambles may take several times as many (`Question.chat_budget`)."""
FACTS_EACH = 7
"""Facts, and so questions, of a life."""
FIRST_TOLD = 5
"""The turn (from 1) that tells the first life; the others follow, one a turn."""
_ARTICLES = re.compile(r"\b(?:the|a|an)\b")
_NO_WORD = re.compile(r"[^\w]+")


def normalised(text: str) -> str:
    """Words in lower case, one space between them; no articles, no punctuation."""
    words = _NO_WORD.sub(" ", text.lower())
    return " ".join(_ARTICLES.sub(" ", words).split())


class InWords(Asking):
    """A task whose answers are sentences. Questions carry their passage, for the systems that are shown it."""

    metric = "accuracy"

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        """``accuracy``: the answer holds the right value; ``strict``: and no other value of its kind;
        ``cited``: the first citation overlaps the lines of the passage; ``shown``: those lines were among the places
        that the model was shown."""
        answer = answers[0]
        said = f" {normalised(answer.text)} "
        right = any(f" {normalised(value)} " in said for value in question.answers)
        wrong = any(f" {normalised(str(value))} " in said for value in question.facts["wrong"])
        metrics = {"accuracy": float(right), "strict": float(right and not wrong)}
        if answer.citations is not None:
            metrics["cited"] = cited(question, answers)["citation_accuracy"]
        if answer.shown is not None:
            metrics["shown"] = float(any(question.places[0].holds(place) for place in answer.shown))
        return metrics


class Story(InWords):
    """Passages about made-up people."""

    name = "story"
    about = "questions about made-up people; each has a passage of seven facts in the first tenth of the text"

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        told = list(itertools.islice(lives(rng, FACTS_EACH), -(-count // FACTS_EACH)))
        asked = [(life.passage, one) for life in told for one in life.asked][:count]
        return _scattered(material, length, rng, [life.passage for life in told], asked)


class Facts(InWords):
    """Facts of one line each."""

    name = "facts"
    about = "questions about facts that stand on one line each in the first tenth of the text (key and value)"

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        told = list(itertools.islice(records(rng), count))
        return _scattered(material, length, rng, [one.line for one in told], [(one.line, one.asked) for one in told])


class Turns(InWords):
    """A conversation: people are told of from turn 5 on, and asked for when it has ended."""

    name = "turns"
    about = "questions about people that were told of in the first turns (from the fifth) of a long conversation"

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        told = list(itertools.islice(lives(rng, FACTS_EACH), -(-count // FACTS_EACH)))
        asked = [(life.passage, one) for life in told for one in life.asked][:count]

        def make(filler: list[str]) -> Context:
            turns = [turn for _, turn in zip(filler, _turns(filler, told), strict=False)]
            size = material.fit(lambda n: _conversation(turns[:n]), length, len(turns))
            return _context(_conversation(turns[:size]), asked, extra={"turns": size})

        return material.filled(make, rng)


def _scattered(
    material: Material, length: int, rng: random.Random, inserted: Sequence[str], asked: Sequence[tuple[str, Asked]]
) -> Context:
    """Passages between the lines of the first part of a text, each a paragraph of its own."""
    places = sorted(rng.random() * FIRST_PART for _ in inserted)
    paragraphs = [f"\n{text}\n\n" for text in inserted]

    def make(filler: list[str]) -> Context:
        def text(lines: int) -> Documents:
            return mixed(TEXT_PATH, filler[:lines], paragraphs, places)

        return _context(text(material.fit(text, length, len(filler))), asked)

    return material.filled(make, rng)


def _context(documents: Documents, asked: Sequence[tuple[str, Asked]], extra: dict[str, int] | None = None) -> Context:
    text = documents[0].text
    questions = []
    for passage, one in asked:
        at = text.find(passage)
        if not 0 <= at <= 2 * FIRST_PART * len(text):
            raise EvalError(f"what {len(asked)} questions ask for does not fit into the beginning of a text this short")
        line = text.count("\n", 0, at) + 1
        questions.append(
            Question(
                ask=one.question,
                cues=(one.question,),
                answers=(one.answer,),
                max_tokens=MAX_TOKENS,
                places=(Where(TEXT_PATH, line, line + passage.count("\n")),),
                search=one.question,
                place=at / len(text),
                facts={"wrong": one.wrong, "passage": passage, "kind": one.kind, **(extra or {})},
            )
        )
    return Context(documents, tuple(questions))


def _turns(filler: Sequence[str], told: Sequence[Life]) -> Iterator[str]:
    """Turns without end: some small talk, the lives, and then the filler's lines, asked for and said."""
    lines = [line.strip() for line in filler if len(line.split()) >= 4]
    for number, (line, following) in enumerate(zip(lines[::2], lines[1::2], strict=False), start=1):
        life = number - FIRST_TOLD
        if 0 <= life < len(told):
            said = f"Let me tell you about somebody I know.\n{told[life].passage}"
            yield f"User: {said}\nAssistant: I will remember that.\n\n"
        else:
            yield f"User: What comes after this line?\n{line}\nAssistant: {following}\n\n"


def _conversation(turns: Sequence[str]) -> Documents:
    return (Document(TEXT_PATH, "".join(turns)),)


IN_WORDS: tuple[InWords, ...] = (Story(), Facts(), Turns())
