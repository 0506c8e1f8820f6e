"""Why a prompt was not found whole: where it first differs from what was kept, and in which message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from foveal.server.chats import rendered_ids
from foveal.server.registry import Chosen, Shelf, Why
from foveal.text.chat import ChatError
from foveal.text.messages import AssistantMessage, Conversation, SystemMessage, ToolMessage

Json = dict[str, Any]

AROUND = 12
"""Tokens that are shown before and after a difference."""


def told(shelf: Shelf, why: Why) -> Json:
    """What is known of one prompt, as JSON. Renders the conversation a few times."""
    said: Json = {
        "request": why.request,
        "model": why.model,
        "memory": why.memory,
        "prompt_tokens": why.prompt_tokens,
        "reused_tokens": why.reused_tokens,
        "reason": None if why.miss is None else why.miss.reason,
        "position": None if why.miss is None else why.miss.position,
    }
    if why.miss is not None and why.miss.reason == "first_difference" and why.ids is not None:
        said |= _difference(shelf, why)
    return said


def _difference(shelf: Shelf, why: Why) -> Json:
    assert why.miss is not None and why.ids is not None
    tokenizer = shelf.model.engine.engine.tokenizer
    place = why.miss.position - (why.prompt_tokens - len(why.ids))
    if not 0 <= place < len(why.ids):
        return {}
    expected = why.miss.expected
    return {
        "token": int(why.ids[place]),
        "expected_token": expected,
        "before": tokenizer.decode(why.ids[max(0, place - AROUND) : place].tolist()),
        "text": tokenizer.decode(why.ids[place : place + AROUND].tolist()),
        "expected_text": None if expected is None else tokenizer.decode([expected]),
        "message": None if why.conversation is None else message_at(shelf, why.conversation, place),
    }


def message_at(shelf: Shelf, conversation: Conversation, place: int) -> Json:
    """Index and role of the message in which token `place` of a prompt stands. Tools are rendered with the first
    message. Renders the conversation a few times."""
    low, high = 1, len(conversation.messages)
    while low < high:
        middle = (low + high) // 2
        if _length(shelf, conversation, middle) > place:
            high = middle
        else:
            low = middle + 1
    return {"index": low - 1, "role": _role(conversation.messages[low - 1])}


def _length(shelf: Shelf, conversation: Conversation, count: int) -> int:
    """Tokens of the first `count` messages."""
    shorter = replace(
        conversation, messages=conversation.messages[:count], continue_last=False, add_generation_prompt=False
    )
    try:
        return len(rendered_ids(Chosen(shelf.model, None, shelf), shorter))
    except ChatError:
        return 0


def _role(message: object) -> str:
    for kind, role in ((SystemMessage, "system"), (AssistantMessage, "assistant"), (ToolMessage, "tool")):
        if isinstance(message, kind):
            return role
    return "user"
