"""The routes of the Messages API."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from foveal.server.anthropic.reading import conversation_of
from foveal.server.anthropic.schema import AnthropicError, CountAnswer, CountRequest, MessageAnswer, MessagesRequest
from foveal.server.anthropic.writing import MessageWriter, message
from foveal.server.chats import asked_chat, rendered_ids
from foveal.server.failures import request_id
from foveal.server.openai.routes import STREAM
from foveal.server.openai.sampling import stops_of
from foveal.server.pieces import Sampling
from foveal.server.service import Caller, service_of
from foveal.server.streaming import stream
from foveal.server.wire import JSONBytes, new_id

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": AnthropicError, "description": said}
    for status, said in {
        400: "The request is wrong, or too long",
        401: "No key, or one that is not known",
        403: "The key may not do this",
        404: "There is no such model or memory",
        409: "It belongs to another model",
        413: "The body is too large",
        429: "The key has as many requests in work as it may",
        500: "The server failed",
        501: "This server cannot do it",
        529: "Busy, full or being stopped",
    }.items()
}

router = APIRouter(responses=FAILURES, tags=["anthropic"])


@router.post("/v1/messages", responses={200: {"model": MessageAnswer, "content": STREAM}})
async def create_message(request: Request, body: MessagesRequest, key: Caller) -> Response:
    """Answer a conversation; streamed, block by block."""
    service = service_of(request)
    chosen = service.registry.choose(body.model, key, body.memory)
    conversation = conversation_of(body, service.settings)
    sampling = Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k or 0),
        max_tokens=body.max_tokens,
        stop=stops_of(body.stop_sequences),
    )
    asked = await asked_chat(request_id(request), key, chosen, conversation, sampling, citations=bool(body.citations))
    told: dict[str, Any] = {
        "id": new_id("msg_"),
        "name": body.model or chosen.model.name,
        "model": chosen.model.name,
        "settings": service.settings,
        "citations": bool(body.citations),
    }
    if body.stream:
        return await stream(request, service, asked, MessageWriter(**told, request_id=asked.id))
    return JSONBytes(message(await service.whole(request, asked), **told))


@router.post("/v1/messages/count_tokens", responses={200: {"model": CountAnswer}})
async def count_tokens(request: Request, body: CountRequest, key: Caller) -> Response:
    """How many tokens a request's prompt has."""
    service = service_of(request)
    chosen = service.registry.choose(body.model, key, body.memory)
    ids = await asyncio.to_thread(rendered_ids, chosen, conversation_of(body, service.settings))
    return JSONBytes({"input_tokens": len(ids)})
