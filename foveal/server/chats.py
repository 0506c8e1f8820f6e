"""A conversation as a prompt for the engine: rendered, with sampled turns in it, and held to what it demands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from foveal.aio import TokenConstraint
from foveal.server.auth import Key
from foveal.server.failures import ApiError
from foveal.server.pieces import Asked, Prompt, Sampling
from foveal.server.registry import Chosen
from foveal.server.voices import ChatVoice
from foveal.text.chat import ChatEncoding, ChatUnsupported, Rendered
from foveal.text.constraint import reply_constraint
from foveal.text.messages import Conversation


async def asked_chat(
    id: str,
    key: Key,
    chosen: Chosen,
    conversation: Conversation,
    sampling: Sampling,
    *,
    citations: bool,
    attention: bool = False,
) -> Asked:
    """The request `id` for the next turn of a conversation. Raises `ApiError`, `ParameterError`."""
    prompt = await asyncio.to_thread(_prompt, chosen, conversation, sampling.stop)
    return Asked(
        id=id,
        key=key,
        chosen=chosen,
        prompt=prompt,
        sampling=sampling,
        citations=citations,
        attention=attention,
    )


def rendered_ids(chosen: Chosen, conversation: Conversation) -> list[int]:
    """The ids that a conversation is read as, those of sampled turns included."""
    encoding = chosen.model.chats()
    rendered = _rendered(encoding, conversation)
    return chosen.shelf.turns.replay(rendered, conversation, encoding.stop_tokens).ids


def _prompt(chosen: Chosen, conversation: Conversation, stop: Sequence[str]) -> Prompt:
    encoding, tokenizer = chosen.model.chats(), chosen.model.engine.engine.tokenizer
    rendered = _rendered(encoding, conversation)
    replayed = chosen.shelf.turns.replay(rendered, conversation, encoding.stop_tokens)

    def constraint() -> TokenConstraint | None:
        return made.pop() if made else _constraint(chosen, conversation, rendered)

    made = [_constraint(chosen, conversation, rendered)]  # what is wrong with a schema is told before anything runs
    return Prompt(
        ids=replayed.ids,
        voice=lambda: ChatVoice(encoding.parser(conversation, rendered, stop=stop)),
        constraint=constraint,
        conversation=conversation,
        head=replayed.head,
        stop_tokens=tuple(token for token in encoding.stop_tokens if token != tokenizer.eos_id),
    )


def _rendered(encoding: ChatEncoding, conversation: Conversation) -> Rendered:
    try:
        return encoding.render(conversation)
    except ChatUnsupported as error:
        raise ApiError("invalid_request", str(error)) from error


def _constraint(chosen: Chosen, conversation: Conversation, rendered: Rendered) -> TokenConstraint | None:
    encoding, tokenizer = chosen.model.chats(), chosen.model.engine.engine.tokenizer
    try:
        return reply_constraint(encoding, tokenizer, conversation, rendered)
    except ChatUnsupported as error:
        raise ApiError("invalid_request", str(error)) from error
