"""What a chat model is given: places with their numbers, paths and lines, and the question before and behind them.

The form was chosen by trial on SmolLM2-135M (docs/ask.md). A question that stands before the text too says what to look
for while the text is read, and an answer that has to begin with "According to the text" is taken from it more often.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveal.memory.asking.places import Found
from foveal.text.messages import AssistantMessage, Conversation, SystemMessage, UserMessage

INSTRUCTION = "You read a text and answer a question about it with words of the text."
_NAME = re.compile(r"[\d_./(\\]|[a-z][A-Z]")
"""What words of prose do not have."""
LEAD = "According to the text,"
"""How the model's answer begins; it is no part of what is told."""


def asked(question: str, places: Sequence[Found]) -> Conversation:
    """The conversation whose last turn is the answer to come. The best place stands last, next to the question."""
    if not places:
        return Conversation(messages=(UserMessage(f"{question}\nAnswer in one short sentence."),))
    shown = [f"[{number}] {place}\n{place.text}" for number, place in enumerate(places, start=1)]
    asks = f"Question: {question}"
    turn = UserMessage("\n\n".join([asks, *reversed(shown), asks]))
    return Conversation(messages=(SystemMessage(INSTRUCTION), turn, AssistantMessage(content=LEAD)), continue_last=True)


def begun(text: str) -> str:
    """The first piece of an answer behind `LEAD`, as a sentence begins; a name out of code stays as it is."""
    text = text.lstrip(" ,:\n")
    first = text.split(maxsplit=1)[0].rstrip(".,;:!?") if text else ""
    return text if _NAME.search(first) else text[:1].upper() + text[1:]
