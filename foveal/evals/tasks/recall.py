"""Verbatim recall on code: a line that stands once goes in, what follows it must come out, token by token.

Right is what the source says next, 32 tokens, position by position, greedy; a citation is right when the first one
names the file and lines where that text stands. Everything that looks at code (recall, citations, the indexer, top-k,
perplexity) takes the same texts.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from foveal.evals.errors import EvalError
from foveal.evals.material import Documents, Material, lines_of
from foveal.evals.scoring import tokens_after, tokens_right
from foveal.evals.task import Answer, Asking, Context, Form, Metrics, Question, Where, cited
from foveal.text import Tokenizer

ANSWER_TOKENS = 32
MIN_CUE_TOKENS = 8
MIN_DISTANCE = 300
"""Tokens between the cue's place in the source and the end of the memory, at least: well outside the raw window."""
CHAT_LINES = 6
"""Lines that the chat form asks for."""
_TRIES = 10
"""Stretches of the source that are looked at for lines to ask for."""
CODE = "code"
"""Family of the tasks that share these texts."""


class Recall(Asking):
    """The product itself: `Memory.recall` from a line of text, as a person would paste it."""

    name = "recall"
    about = "verbatim recall on code: the 32 tokens after a line that stands once"
    metric = "token_accuracy"
    family = CODE

    def version(self, form: Form, length: int) -> int:
        return 2 if form == "chat" else 1

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        """A stretch of whole files, and lines of it."""
        return code_context(material, length, count, rng)

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        """``token_accuracy``, ``sequence_accuracy`` (all 32 right), ``first_wrong`` (tokens before the first mistake),
        ``citation_accuracy``. Of a chat answer its lines are compared, as far as they were asked for (`_as_lines`)."""
        answer, tokenizer = answers[0], material.tokenizer
        cue, following = question.cues[0], question.expected
        said, got = answer.text, answer.tokens
        if answer.chat:
            following, said, got = *_as_lines(following, said), None
        expected = tokens_after(tokenizer, cue, following, ANSWER_TOKENS)
        if got is None:
            got = tokens_after(tokenizer, cue, said, ANSWER_TOKENS)
        share, first_wrong = tokens_right(got[:ANSWER_TOKENS], expected)
        right = {"token_accuracy": share, "sequence_accuracy": float(share == 1), "first_wrong": float(first_wrong)}
        return {**right, **cited(question, answers)}


def _as_lines(following: str, said: str) -> tuple[str, str]:
    """What stands behind the cue, and a chat answer as if it stood there: both as far as the lines that were asked for.

    An answer begins with a word and not with the line end in which the cue ends. Code fences, blank lines at both ends
    and the indentation of the first line are none of its mistakes.
    """
    lead = re.match(r"\s*", following)
    assert lead is not None
    ends, indentation = re.fullmatch(r"(?s)((?:.*\n)?)(.*)", lead[0]).groups()  # type: ignore[union-attr]
    body = re.sub(r"^```[^\n]*\n|\n?```\s*$", "", said.strip())
    body = re.sub(r"^(?:[^\S\n]*\n)+", "", body)
    given = body if body[:1].isspace() else indentation + body
    return _first_lines(following), _first_lines(ends + given)


def _first_lines(text: str) -> str:
    """The rest of the cue's line, and the lines asked for."""
    return "\n".join(text.split("\n")[: CHAT_LINES + 1]).rstrip()


def code_context(material: Material, length: int, count: int, rng: random.Random) -> Context:
    """A stretch of the source with up to `count` lines to recall from. Raises `EvalError` when no line will do."""
    for _ in range(_TRIES):
        documents = material.stretch(length, rng)
        questions = tuple(choose_cues(documents, material.tokenizer, count, rng))
        if questions:
            return Context(documents, questions)
    raise EvalError(
        f"no line of a text of {length:,} tokens stands once, has {MIN_CUE_TOKENS} tokens and is far from its end"
    )


def choose_cues(documents: Documents, tokenizer: Tokenizer, count: int, rng: random.Random) -> list[Question]:
    """Random lines of at least `MIN_CUE_TOKENS` tokens that stand only once, with enough text behind them."""
    seen = Counter(line.strip() for document in documents for line in lines_of(document.text))
    every = list(_candidates(documents, seen))
    rng.shuffle(every)
    found: list[Question] = []
    for question in every:
        if len(found) == count:
            break
        long_enough = len(tokenizer.encode(question.expected)) >= ANSWER_TOKENS + 2
        if long_enough and len(tokenizer.encode(question.cues[0])) >= MIN_CUE_TOKENS:
            found.append(_placed(question, tokenizer))
    return found


def _candidates(documents: Documents, seen: Counter[str]) -> Iterator[Question]:
    total = sum(len(document.text) for document in documents)
    before = 0
    for document in documents:
        lines = lines_of(document.text, ends=True)
        offset = 0
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            offset += len(line)
            far = total - before - offset > 4 * MIN_DISTANCE
            if text.strip() and seen[text.strip()] == 1 and far:
                following = document.text[offset - (len(line) - len(text)) : offset + 800]
                yield _question(document.path, number, text, following, (before + offset) / total)
        before += len(document.text)


def _question(path: str, line: int, text: str, following: str, place: float) -> Question:
    return Question(
        ask="Continue the text above after this line, word for word, with nothing else and no code fence; write the "
        f"next {CHAT_LINES} lines:\n{text}",
        cues=(text,),
        answers=(following,),
        max_tokens=ANSWER_TOKENS,
        places=(Where(path, line, line),),
        expected=following,
        search=text,
        place=place,
        facts={"ignore_eos": True},
    )


def _placed(question: Question, tokenizer: Tokenizer) -> Question:
    """With the lines that the expected tokens stand in."""
    expected = tokens_after(tokenizer, question.cues[0], question.expected, ANSWER_TOKENS)
    text = tokenizer.decode(list(expected))
    (where,) = question.places
    place = Where(where.path, where.first, where.first + 1 + text.count("\n"))
    return replace(question, answers=(text,), places=(place,))
