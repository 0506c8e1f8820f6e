"""The routes of the Responses API. `previous_response_id` goes on from a stored conversation, which stays as it was."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from foveal.server.auth import Key
from foveal.server.chats import asked_chat
from foveal.server.failures import ApiError, request_id, unsupported
from foveal.server.openai.conversations import choice_of, effort_of, format_of
from foveal.server.openai.items import Tools, messages_of
from foveal.server.openai.response_schema import DeletedResponseAnswer, ItemsAnswer, ResponseAnswer, ResponseRequest
from foveal.server.openai.response_writer import ResponseWriter
from foveal.server.openai.routes import FAILURES, STREAM
from foveal.server.openai.schema import ChatFormat, Json, SchemaFormat
from foveal.server.pieces import Asked, Sampling
from foveal.server.responses import Stored
from foveal.server.service import Caller, Service, service_of
from foveal.server.settings import Settings
from foveal.server.streaming import stream
from foveal.server.wire import JSONBytes, new_id, now
from foveal.text.messages import Conversation, SystemMessage, Thinking, ToolChoice, ToolMode

router = APIRouter(responses=FAILURES, tags=["responses"])


Id = Annotated[str, Path(description="The stored response.")]


@router.post("/v1/responses", responses={200: {"model": ResponseAnswer, "content": STREAM}})
async def create_response(request: Request, body: ResponseRequest, key: Caller) -> Response:
    """Answer a list of items, or go on from a stored response."""
    service = service_of(request)
    chosen = service.registry.choose(body.model, key, body.memory)
    given = [_named(item) for item in _items(body)]
    before = await _before(service, key, body.previous_response_id)
    tools = Tools(body.tools)
    conversation = _conversation(body, [*before, *given], tools, service.settings)
    logprobs = "message.output_text.logprobs" in (body.include or ()) or bool(body.top_logprobs)
    sampling = Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if logprobs else None,
    )
    asked = await asked_chat(request_id(request), key, chosen, conversation, sampling, citations=bool(body.citations))
    encrypted = "reasoning.encrypted_content" in (body.include or ())
    response = _response(body, chosen.model.name, service.settings)
    tokenizer = chosen.model.engine.engine.tokenizer if logprobs else None
    writer = ResponseWriter(
        response, tools, chosen.model.name, service.settings, encrypted=encrypted, logprobs_of=tokenizer
    )

    async def store() -> None:
        if body.store is not False:
            stored = Stored(writer.response, given, [*before, *given, *writer.response["output"]])
            await asyncio.to_thread(service.responses.put, key.tenant, stored)

    if body.stream:
        return await stream(request, service, asked, writer, store)
    for piece in await service.works.unless_left(request, _pieces(service, asked)):
        writer.piece(piece)
    await store()
    return JSONBytes(writer.response)


async def _pieces(service: Service, asked: Asked) -> list[Any]:
    from foveal.server.answers import answers

    return [piece async for piece in answers(service, asked)]


def _items(body: ResponseRequest) -> list[Json]:
    if body.background:
        raise unsupported("background", "background is not supported; leave it out")
    if body.conversation:
        raise unsupported("conversation", "conversation is not supported; use previous_response_id")
    if body.prompt:
        raise unsupported("prompt", "stored prompts are not supported; write out instructions and input")
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": body.input}]}]
    if not body.input and body.previous_response_id is None:
        raise ApiError("invalid_request", "there is no input", param="input")
    return list(body.input or ())


def _named(item: Json) -> Json:
    """An item with an id of its own."""
    return item if item.get("id") else {**item, "id": new_id("item_")}


async def _before(service: Service, key: Key, id: str | None) -> list[Json]:
    if id is None:
        return []
    return (await _stored(service, key, id, "previous_response_id")).items


async def _stored(service: Service, key: Key, id: str, param: str = "response_id") -> Stored:
    found = await asyncio.to_thread(service.responses.get, key.tenant, id)
    if found is None:
        raise ApiError("not_found", f"there is no response {id!r}", param=param, detail="response_not_found")
    return found


def _conversation(body: ResponseRequest, items: list[Json], tools: Tools, settings: Settings) -> Conversation:
    instructions = [SystemMessage(body.instructions)] if body.instructions else []
    messages = (*instructions, *messages_of(items))
    if not messages:
        raise ApiError("invalid_request", "the input holds no message", param="input")
    return Conversation(
        messages=messages,
        tools=tuple(tools.definitions),
        tool_choice=_choice(body, tools),
        thinking=_thinking(body, settings),
        response_format=_format(body),
    )


def _choice(body: ResponseRequest, tools: Tools) -> ToolChoice:
    choice = body.tool_choice
    if isinstance(choice, dict) and tools.definitions and choice.get("type") in ("function", "custom"):
        name = tools.ours(choice)
        return ToolChoice(mode=ToolMode.REQUIRED, name=name, parallel=body.parallel_tool_calls is not False)
    return choice_of(choice, body.parallel_tool_calls, bool(tools.definitions))


def _thinking(body: ResponseRequest, settings: Settings) -> Thinking:
    effort = effort_of(body.reasoning.effort if body.reasoning else None, "reasoning.effort")
    return settings.thinking if effort is None else effort


def _format(body: ResponseRequest) -> Any:
    form = (body.text.format if body.text else None) or {"type": "text"}
    kind = form.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise ApiError("invalid_request", f"text.format.type is {kind!r}", param="text.format")
    schema = SchemaFormat.model_validate(form) if kind == "json_schema" else None
    return format_of(ChatFormat(type=kind, json_schema=schema))


def _response(body: ResponseRequest, model: str, settings: Settings) -> Json:
    """The object, as far as the request decides it."""
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "background": False,
        "error": None,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model or model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "presence_penalty": body.presence_penalty or 0.0,
        "previous_response_id": body.previous_response_id,
        "reasoning": {
            "effort": body.reasoning.effort if body.reasoning else None,
            "summary": body.reasoning.summary if body.reasoning else None,
        },
        "store": body.store is not False,
        "temperature": settings.temperature if body.temperature is None else body.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": settings.top_p if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "service_tier": "default",
    }


# ---------------------------------------------------------------------- stored ones


@router.get("/v1/responses/{response_id}", responses={200: {"model": ResponseAnswer}})
async def show_response(request: Request, response_id: Id, key: Caller) -> Response:
    """A stored response."""
    return JSONBytes((await _stored(service_of(request), key, response_id)).body)


@router.delete("/v1/responses/{response_id}", responses={200: {"model": DeletedResponseAnswer}})
async def delete_response(request: Request, response_id: Id, key: Caller) -> Response:
    """Delete a stored response."""
    service = service_of(request)
    await _stored(service, key, response_id)
    await asyncio.to_thread(service.responses.delete, key.tenant, response_id)
    return JSONBytes({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", responses={200: {"model": ItemsAnswer}})
async def list_input_items(request: Request, response_id: Id, key: Caller) -> Response:
    """The items of the request that a stored response answers."""
    items = (await _stored(service_of(request), key, response_id)).input
    edges = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
    return JSONBytes({"object": "list", "data": items, "has_more": False, **edges})
