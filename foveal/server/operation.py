"""How the server is, and why it did not find more of a prompt."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import PlainTextResponse, Response

from foveal import __version__
from foveal.engine import SHIPPED
from foveal.server import window
from foveal.server.bodies import Json, Open
from foveal.server.metrics import TEXT
from foveal.server.openai.routes import FAILURES, MODEL
from foveal.server.service import Caller, service_of
from foveal.server.why import told
from foveal.server.wire import JSONBytes

router = APIRouter(tags=["operation"])

STOPPING = "It is being stopped"


class ServedAnswer(Open):
    """A model that is served."""

    id: str
    """The name by which requests ask for it."""
    chats: bool
    """Whether it takes chats."""
    answers: bool
    """Whether it was made to chat, and can word answers."""
    context_tokens: int
    """Tokens that a prompt and its reply may have together."""


class WhyAnswer(Open):
    """What was found of one prompt. The texts are there where the prompt parts from one that is kept."""

    request: str
    """The request's name, as in the header `x-request-id`."""
    model: str
    """The model that was asked."""
    memory: str | None
    """The memory with which the prompt begins. Null where there is none."""
    prompt_tokens: int
    """Tokens of the prompt, those of its memory included."""
    reused_tokens: int
    """Tokens of the prompt that were known, and not read again."""
    reason: str | None
    """Why not more: `first_difference`, `evicted`, `not yet saved`, `other model`, `scored` or `new`. Null when all was
    known."""
    position: int | None
    """The first token that was not known, from the beginning of the prompt."""
    token: int | None = None
    """Its id."""
    expected_token: int | None = None
    """The token id at that place of the prompt that is kept, where it has one."""
    before: str | None = None
    """The text before that token."""
    text: str | None = None
    """The text from that token on."""
    expected_text: str | None = None
    """The text of `expected_token`."""
    message: Json | None = None
    """`index` and `role` of the message in which that token stands, for chats."""


class WhysAnswer(Open):
    """The last prompts, the latest first."""

    object: Literal["list"]
    """Always `list`."""
    data: list[WhyAnswer]
    """The prompts of the caller's tenant."""


class ServerAnswer(Open):
    """What is served, and what the caller may do."""

    name: str
    """Always `foveal`."""
    version: str
    """The server's version."""
    models: list[ServedAnswer]
    """Models and plain aliases that the key may use."""
    writes: bool
    """Whether the key may make, change and delete memories."""
    reads_paths: bool
    """Whether it may have paths of the server read."""
    upload_bytes: int
    """Most bytes that it may send at once; 0 where it may send none."""


class HealthAnswer(Open):
    """The process answers."""

    status: Literal["ok"]
    """Always `ok`."""


class ReadyAnswer(Open):
    """Whether requests are taken in."""

    ready: bool
    """False from the moment when the server is being stopped."""


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def root(request: Request) -> Response:
    """The page for browsers. Other clients look whether anything is here."""
    if "text/html" in request.headers.get("accept", ""):
        return window.file("index.html")
    return JSONBytes({"name": "foveal", "version": __version__})


@router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def page(name: str) -> Response:
    """What the page is made of."""
    return window.file(name)


@router.get("/v1/server", responses=FAILURES | {200: {"model": ServerAnswer}})
async def server(request: Request, key: Caller) -> Response:
    """What is served, and what the caller may do."""
    service = service_of(request)
    names = service.registry.names(key)
    models = [(name, service.registry.find(name, key)) for name in names]
    told = {
        "name": "foveal",
        "version": __version__,
        "models": [
            {
                "id": name,
                "chats": model.encoding is not None,
                "answers": model.encoding is not None and model.engine.engine.name not in SHIPPED,
                "context_tokens": model.context_tokens,
            }
            for name, model in models
        ],
        "writes": key.writes,
        "reads_paths": key.writes and bool(service.settings.roots),
        "upload_bytes": service.settings.import_bytes if key.writes else 0,
    }
    return JSONBytes(told)


@router.get("/health", responses={200: {"model": HealthAnswer}})
async def health() -> Response:
    """Whether the process answers."""
    return JSONBytes({"status": "ok"})


@router.get("/ready", responses={200: {"model": ReadyAnswer}, 503: {"model": ReadyAnswer, "description": STOPPING}})
async def ready(request: Request) -> Response:
    """Whether it takes requests in."""
    taking = not service_of(request).gate.closed
    return JSONBytes({"ready": taking}, status_code=200 if taking else 503)


@router.get("/v1/why", responses=FAILURES | {200: {"model": WhysAnswer}})
async def why(
    request: Request,
    key: Caller,
    model: Annotated[str | None, Query(description=MODEL)] = None,
    limit: Annotated[int, Query(description="Most prompts that are told; there are 64 at most.")] = 10,
) -> Response:
    """What was found of the last prompts of this tenant, and why not more; the latest first. Prompts that begin with a
    memory are told to keys that may see it."""
    service = service_of(request)
    name = model or next(iter(service.registry.names(key)), None)
    shelf = service.registry.shelf(service.registry.find(name, key), key)
    seen = [each for each in shelf.whys if each.memory is None or key.may_see(each.memory)]
    latest = seen[::-1][: max(0, limit)]
    data = await asyncio.to_thread(lambda: [told(shelf, each) for each in latest])
    return JSONBytes({"object": "list", "data": data})


@router.get("/metrics", response_class=PlainTextResponse, responses=FAILURES)
async def metrics(request: Request, key: Caller) -> Response:
    """Numbers for Prometheus."""
    service = service_of(request)
    service.keys.check_metrics(key)
    return PlainTextResponse(await asyncio.to_thread(service.metrics.text), media_type=TEXT)
