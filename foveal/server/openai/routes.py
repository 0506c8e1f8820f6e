"""The routes of OpenAI's APIs, and vLLM's for tokens."""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from foveal.server.chats import asked_chat, rendered_ids
from foveal.server.failures import ApiError, request_id
from foveal.server.openai import chat, completions
from foveal.server.openai.answer_schema import (
    ChatAnswer,
    CompletionAnswer,
    ErrorAnswer,
    ModelAnswer,
    ModelsAnswer,
    TextAnswer,
    TokenizerAnswer,
    TokensAnswer,
)
from foveal.server.openai.conversations import conversation_of, logprobs_of
from foveal.server.openai.sampling import sampling_of, stops_of
from foveal.server.openai.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from foveal.server.registry import Model
from foveal.server.service import Caller, Service, service_of
from foveal.server.streaming import stream, streamed
from foveal.server.wire import JSONBytes, new_id

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": said}
    for status, said in {
        400: "The request is wrong, or too long",
        401: "No key, or one that is not known",
        403: "The key may not do this",
        404: "There is no such model, memory or response",
        409: "It was changed meanwhile, or belongs to another model",
        413: "The body is too large",
        429: "The key has as many requests in work as it may; retry-after says when to come again",
        500: "The server failed",
        501: "This server cannot do it",
        503: "Busy, full or being stopped; retry-after says when to come again",
    }.items()
}
STREAM = {
    "text/event-stream": {
        "schema": {
            "description": "One event of the stream; `data` is JSON, at the end `[DONE]` where the API has that.",
            "type": "object",
            "properties": {
                "event": {"type": "string", "description": "Its kind, where the API names kinds."},
                "data": {"type": "string", "description": "The event itself, as JSON."},
            },
            "required": ["data"],
        }
    }
}

router = APIRouter(responses=FAILURES)

MODEL = "A model of `/v1/models`. Default: the first one that the key may use."


@router.post("/v1/chat/completions", responses={200: {"model": ChatAnswer, "content": STREAM}}, tags=["openai"])
async def create_chat_completion(request: Request, body: ChatRequest, key: Caller) -> Response:
    """Answer a chat; streamed, one chunk for each piece of the reply."""
    service = service_of(request)
    chosen = service.registry.choose(body.model, key, body.memory)
    conversation = conversation_of(body, service.settings)
    limit = body.max_completion_tokens or body.max_tokens
    sampling = sampling_of(
        body,
        service.settings,
        vocabulary=chosen.model.engine.engine.tokenizer.vocab_size,
        max_tokens=limit,
        logprobs=logprobs_of(body),
    )
    asked = await asked_chat(
        request_id(request),
        key,
        chosen,
        conversation,
        sampling,
        citations=bool(body.citations),
        attention=bool(body.attention),
    )
    told: dict[str, Any] = {
        "id": new_id("chatcmpl-"),
        "name": body.model or chosen.model.name,
        "model": chosen.model.name,
        "tokenizer": chosen.model.engine.engine.tokenizer,
        "settings": service.settings,
        "body": body,
    }
    if body.stream:
        return await stream(request, service, asked, chat.ChatWriter(**told))
    return JSONBytes(chat.completion(await service.whole(request, asked), **told))


@router.post("/v1/completions", responses={200: {"model": CompletionAnswer, "content": STREAM}}, tags=["openai"])
async def create_completion(request: Request, body: CompletionRequest, key: Caller) -> Response:
    """Continue a text, or token ids; with `echo` and `logprobs` the prompt is scored too."""
    service = service_of(request)
    chosen = service.registry.choose(body.model, key, body.memory)
    tokenizer = chosen.model.engine.engine.tokenizer
    prompts = await asyncio.to_thread(completions.prompts_of, body, tokenizer)  # a long text takes long
    sampling = sampling_of(
        body,
        service.settings,
        vocabulary=tokenizer.vocab_size,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
    )
    asked = completions.asked_of(body, prompts, sampling, chosen, key, request_id(request))
    telling = completions.Telling(body, prompts, tokenizer)
    told: dict[str, Any] = {
        "id": new_id("cmpl-"),
        "name": body.model or chosen.model.name,
        "model": chosen.model.name,
        "settings": service.settings,
    }
    if body.stream:
        pieces = service.works.stream(lambda: completions.all_answers(service, asked), service.settings.ping_seconds)
        writer = completions.CompletionWriter(body, len(prompts), telling, **told)
        return await streamed(request, service, pieces, writer)  # type: ignore[arg-type]
    found = await service.works.unless_left(request, completions.all_whole(service, asked))
    return JSONBytes(completions.completion(body, found, telling, **told))


# ---------------------------------------------------------------------- models


def described(service: Service, name: str, model: Model) -> dict[str, Any]:
    """A model as both vendors' clients read it."""
    created = datetime.datetime.fromtimestamp(model.created, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "foveal",
        "type": "model",
        "display_name": name,
        "created_at": created,
        "max_model_len": model.context_tokens,
    }


@router.get("/v1/models", responses={200: {"model": ModelsAnswer}}, tags=["models"])
async def list_models(request: Request, key: Caller) -> Response:
    """All models, and their plain aliases."""
    service = service_of(request)
    data = [described(service, name, service.registry.find(name, key)) for name in service.registry.names(key)]
    edges = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return JSONBytes({"object": "list", "data": data, "has_more": False, **edges})


@router.get("/v1/models/{name:path}", responses={200: {"model": ModelAnswer}}, tags=["models"])
async def show_model(request: Request, name: Annotated[str, Path(description="The model.")], key: Caller) -> Response:
    """One model."""
    service = service_of(request)
    return JSONBytes(described(service, name, service.registry.find(name, key)))


# ---------------------------------------------------------------------- tokens


@router.post("/tokenize", responses={200: {"model": TokensAnswer}}, tags=["tokens"])
async def tokenize(request: Request, body: TokenizeRequest, key: Caller) -> Response:
    """The token ids of a text (none are added), or of a chat as it would be read."""
    service = service_of(request)
    chosen = service.registry.choose(body.model, key)
    if body.messages:
        whole = ChatRequest(messages=body.messages, tools=body.tools)
        conversation = conversation_of(whole, service.settings)
        begins = body.add_generation_prompt is not False
        ids = rendered_ids(chosen, replace(conversation, add_generation_prompt=begins))
    elif body.prompt is not None:
        ids = chosen.model.engine.engine.tokenizer.encode(body.prompt)
    else:
        raise ApiError("invalid_request", "give a prompt, or messages", param="prompt")
    return JSONBytes({"tokens": ids, "count": len(ids), "max_model_len": chosen.model.context_tokens})


@router.post("/detokenize", responses={200: {"model": TextAnswer}}, tags=["tokens"])
async def detokenize(request: Request, body: DetokenizeRequest, key: Caller) -> Response:
    """The text of token ids."""
    model = service_of(request).registry.find(body.model, key)
    return JSONBytes({"prompt": model.engine.engine.tokenizer.decode(body.tokens)})


@router.get("/tokenizer_info", responses={200: {"model": TokenizerAnswer}}, tags=["tokens"])
async def tokenizer_info(
    request: Request, key: Caller, model: Annotated[str | None, Query(description=MODEL)] = None
) -> Response:
    """The special tokens that evaluators ask for."""
    service = service_of(request)
    name = model or next(iter(service.registry.names(key)), None)
    tokenizer = service.registry.find(name, key).engine.engine.tokenizer
    control = {id_: text for text, id_ in tokenizer.control_tokens.items()}
    told = {
        "bos_token": control.get(tokenizer.bos_id, ""),
        "eos_token": control.get(tokenizer.eos_id, ""),
        "pad_token": next((text for text in control.values() if "pad" in text), None),
        "chat_template": None,
        "vocab_size": tokenizer.vocab_size,
    }
    return JSONBytes(told)


__all__ = ["FAILURES", "STREAM", "router", "stops_of"]
