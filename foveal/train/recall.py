"""Questions about held-out code whose answer stands in the context: "this line, what came next?"

What is special here: the cue line occurs exactly once in the context (as tokens), so there is one right answer, and it
stands far enough back that only the compressed memory can know it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveal.train.data import DataError, IntArray, TokenStore, TokenTable


@dataclass(frozen=True)
class Question:
    """`context` [n] tokens of whole files, `prompt` [n + 1 + c]: context, a newline, the cue; `answer` [a] the tokens
    that followed the cue in the context; `cue_at` where the cue stands there; `document` the first file's index."""

    context: IntArray
    prompt: IntArray
    answer: IntArray
    cue_at: int
    cue_length: int
    document: int


@dataclass(frozen=True)
class Asking:
    """How questions are made: cue lines of `cue` (least, most) tokens, answers of `answer` tokens, the cue at least
    `back` tokens before the end of the context."""

    cue: tuple[int, int] = (8, 64)
    answer: int = 32
    back: int = 300


def ask(
    store: TokenStore, table: TokenTable, length: int, number: int, *, seed: int = 0, asking: Asking | None = None
) -> Question:
    """Question `number` about a context of `length` tokens, deterministic in (seed, length, number).

    The context is consecutive documents of the store from a random one on, cut at `length` tokens. Raises `DataError`
    when the store is shorter than that or holds no line that fits.
    """
    asking = asking or Asking()
    if len(store) < length + 1:
        raise DataError(f"contexts of {length} tokens need a larger store; it holds {len(store)} tokens")
    if length < asking.back + asking.cue[0] + asking.answer:
        raise DataError(f"contexts of {length} tokens are too short for a cue {asking.back} tokens before the end")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, length, number])))
    possible = np.flatnonzero(store.starts <= len(store) - length)
    for _ in range(50):
        document = int(rng.choice(possible))
        start = int(store.starts[document])
        context = store.tokens[start : start + length].astype(np.int64)
        cue = _unique_line(context, table, rng, asking)
        if cue is None:
            continue
        at, size = cue
        prompt = np.concatenate([context, [table.newline], context[at : at + size]])
        answer = context[at + size : at + size + asking.answer]
        return Question(context, prompt, answer, at, size, document)
    raise DataError(f"found no line of {asking.cue[0]} to {asking.cue[1]} tokens that occurs once; is it source text?")


def _unique_line(
    context: IntArray, table: TokenTable, rng: np.random.Generator, asking: Asking
) -> tuple[int, int] | None:
    """(start, length) of a random line that occurs once in `context`, or None."""
    ends = np.flatnonzero(table.line_end[context]) + 1
    starts = np.concatenate([[0], ends])[: len(ends)]
    sizes = ends - starts
    latest = len(context) - max(asking.back, asking.answer)
    fit = (sizes >= asking.cue[0]) & (sizes <= asking.cue[1]) & (ends <= latest)
    lines = np.flatnonzero(fit)
    rng.shuffle(lines)
    for line in lines[:200]:
        at, size = int(starts[line]), int(sizes[line])
        if len(occurrences(context, context[at : at + size])) == 1:
            return at, size
    return None


def occurrences(context: IntArray, pattern: IntArray) -> IntArray:
    """All positions at which `pattern` stands in `context`."""
    places = np.arange(max(0, len(context) - len(pattern) + 1))
    for offset, token in enumerate(pattern):
        places = places[context[places + offset] == token]
    return places
