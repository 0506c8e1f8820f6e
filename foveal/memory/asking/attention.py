"""Where a model looks while a question is read behind its memory.

A question is no cue, so most of its tokens look at places that have nothing to do with it. What a
place counts is its share of the token's attention times the square of how many of the question's last tokens stand
before it there; those of words that say nothing ("what is the") do not count. Nothing is generated.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from foveal import cache
from foveal.batch import SamplingParams
from foveal.engine import Engine
from foveal.memory.asking.words import STOP_WORDS
from foveal.memory.citations import CELL_TOKENS, TokenOrigin, origin_of
from foveal.text.specials import PAD

if TYPE_CHECKING:
    from foveal.memory.memory import Memory

CELLS = 8
"""Cells kept for each token of a question."""
LEAST = 2
"""Tokens of telling words that must stand before a place for it to count."""
MOST_TOKENS = 96
"""Of a long question only so many of its last tokens are read."""

_WORD = re.compile(r"\w+")
_ONE = SamplingParams(max_tokens=1, ignore_eos=True)


def looked_at(
    memory: Memory, question: str, should_stop: Callable[[], bool] = lambda: False
) -> list[tuple[int, float]]:
    """Tokens of the memory that attention came to while `question` was read, with what they count, largest first.

    The memory does not change. Empty where no layer of the model looks beyond its raw window, and where
    the question does not fit behind the memory. `should_stop` is asked
    before each token of the question; it ends the reading early.
    """
    engine = memory.engine
    if not any(ratio == CELL_TOKENS for ratio in engine.config.compress_ratios):
        return []
    ids = engine.tokenizer.encode(f"\n{question}")[-MOST_TOKENS:]
    if memory.length + engine.recall_blanks + len(ids) + 1 > engine.batch.context_length:
        return []
    sequence = engine.fork(memory.sequence)
    try:
        return _read(engine, sequence, memory.length, ids, should_stop)
    finally:
        engine.free(sequence)


def _read(
    engine: Engine, sequence: cache.Sequence, source_tokens: int, ids: list[int], should_stop: Callable[[], bool]
) -> list[tuple[int, float]]:
    if engine.recall_blanks:
        engine.prefill(sequence, [engine.tokenizer.control_id(PAD)] * engine.recall_blanks)
    tells = _telling(engine, ids)
    counts: dict[int, float] = defaultdict(float)
    for number, token in enumerate(ids):
        if should_stop():
            break
        event = next(engine.go_on(sequence, [token], _ONE, trace=True).events())
        origin = origin_of(event.trace, sequence.length - 1, source_tokens, CELLS)
        for start, count in _counted(sequence, source_tokens, origin, ids[: number + 1], tells):
            counts[start] += count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _telling(engine: Engine, ids: Sequence[int]) -> list[bool]:
    """Which tokens belong to words that say something."""
    text = engine.tokenizer.decode(list(ids))
    said = [match.span() for match in _WORD.finditer(text) if match[0].lower() not in STOP_WORDS]
    tells, place = [], 0
    for token in ids:
        first, place = place, place + len(engine.tokenizer.decode([token]))
        tells.append(any(a < place and first < b for a, b in said))
    return tells


def _counted(
    sequence: cache.Sequence, source_tokens: int, origin: TokenOrigin, read: Sequence[int], tells: Sequence[bool]
) -> list[tuple[int, float]]:
    """What each cell of one token counts."""
    whole = sum(mass for _, mass in origin.cells) or 1.0
    found = []
    for start, mass in origin.cells:
        first = max(0, start - len(read))
        text = sequence.token_range(first, min(start + CELL_TOKENS, source_tokens)).tolist()
        places = range(start - 1, first + len(text))
        agreed = max((_agreeing(read, text[: place - first + 1]) for place in places), default=0)
        matched = sum(tells[len(read) - agreed : len(read)])
        if matched >= LEAST:
            found.append((start, mass / whole * matched * matched))
    return found


def _agreeing(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens in which the ends of both agree."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count
