"""The application: routes and errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from foveal import __version__
from foveal.errors import FovealError
from foveal.server.anthropic.routes import router as anthropic_router
from foveal.server.auth import Keys
from foveal.server.description import described
from foveal.server.edge import Edge
from foveal.server.failures import response_of
from foveal.server.mcp.http import McpEndpoint
from foveal.server.memories.routes import router as memories_router
from foveal.server.openai.responses import router as responses_router
from foveal.server.openai.routes import router as openai_router
from foveal.server.operation import router as operation_router
from foveal.server.registry import Registry
from foveal.server.service import Service
from foveal.server.settings import Settings
from foveal.server.tracing import Tracing

THREADS = 16
"""Threads for what needs no place: rendering a prompt, looking a memory up."""


def make_app(registry: Registry, keys: Keys, settings: Settings, *, tracing: Tracing | None = None) -> FastAPI:
    """The application over models that are open. It closes them when it ends."""
    service = Service(registry, keys, settings, tracing=tracing)

    mcp = McpEndpoint(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # A request in work needs one thread at a time; a few more are for what is done before it has a place.
        threads = ThreadPoolExecutor(settings.running + THREADS, thread_name_prefix="foveal-http")
        asyncio.get_running_loop().set_default_executor(threads)
        yield
        await mcp.close()
        await service.close()

    app = FastAPI(title="Foveal", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Edge, service=service)
    for kind in (FovealError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)
    for router in (openai_router, responses_router, anthropic_router, memories_router, operation_router):
        app.include_router(router)
    app.router.routes.append(Route("/mcp", endpoint=mcp))
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    return app


async def _answer(request: Request, error: Exception) -> Response:
    return response_of(request, error)
