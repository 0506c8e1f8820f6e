"""The two documents that each turn of a conversation has in its source map: their names, and what they say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveal.text import Tokenizer

USER, ASSISTANT, ANSWER = "user", "assistant", "answer"
"""What was said; what the model said to it, going on from the context; or what was worded from places of the memory."""

_PATH = re.compile(f"chat/([1-9][0-9]{{0,8}})/(?:{USER}|{ASSISTANT}|{ANSWER})")


def turn_path(turn: int, part: str) -> str:
    """The path of one part of turn number `turn` (from 1)."""
    return f"chat/{turn}/{part}"


def turn_in(path: str) -> int:
    """The number of the turn that a path names; 0 for one that names none."""
    match = _PATH.fullmatch(path)
    return int(match[1]) if match is not None else 0


def part_of(path: str) -> str:
    """Which part a path names."""
    return path.rpartition("/")[2]


def without_marks(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """`text`, which `ids` say, without the marks that the chat form puts around it."""
    for mark in {tokenizer.decode([token]) for token in ids if token in tokenizer.control_ids}:
        text = text.replace(mark, "")
    return text
