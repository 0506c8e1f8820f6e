"""The routes of memories. A name that a key may not see does not exist for it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, File, Path, Query, Request, UploadFile
from starlette.responses import Response, StreamingResponse

from foveal.memory import Conflict, Memory, MemoryNotFound, SharedContext, delete_memory, list_memories
from foveal.memory.keeping import export_memory, fork_memory, import_memory
from foveal.memory.names import check_name
from foveal.server.auth import Key
from foveal.server.citing import described
from foveal.server.failures import ApiError, as_failure, openai_error
from foveal.server.memories import asking, inside, sources, working
from foveal.server.memories.answer_schema import (
    AskAnswer,
    BytesAnswer,
    ChangesAnswer,
    DeletedAnswer,
    HeadAnswer,
    MapAnswer,
    MemoriesAnswer,
    MemoryAnswer,
    RecallAnswer,
    SearchAnswer,
    SourceAnswer,
    SyncedAnswer,
)
from foveal.server.memories.schema import (
    AppendRequest,
    AskRequest,
    CreateRequest,
    ForkRequest,
    RecallRequest,
    SearchRequest,
    SyncRequest,
)
from foveal.server.openai.routes import FAILURES, MODEL, STREAM
from foveal.server.openai.sampling import stops_of
from foveal.server.registry import Shelf
from foveal.server.service import Caller, Service, service_of
from foveal.server.streaming import events
from foveal.server.wire import KEEP_ALIVE, JSONBytes, sse
from foveal.server.works import in_thread

router = APIRouter(prefix="/v1/memories", responses=FAILURES, tags=["memories"])

LONGEST_WAIT = 60.0
LOOK_UP = 0.25
"""Seconds between two looks whether a client that waits has left, or the server is being stopped."""
PIECE = 1 << 20

# What /openapi.json says of arguments.
Named = Annotated[str, Path(description="The memory.")]
FILES = "The files, each with its path as the file name, such as `docs/intro.md`. Two with one path are refused."
WAIT = "Seconds to wait for another head than `after`; more than 60 are 60. Default: 0."
PATH = "A file, as citations call it. One of `path` and `token` is needed."
VERSION = "With `path`: the version whose digest a citation gave. Default: the latest."
LAST = "The last line. Default: as many as there are, 2,000 at most."
FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
TOKEN = "A token, from the beginning of the memory: the 40 lines before it and the 40 behind it are told."

Json = dict[str, Any]


def _shelf(request: Request, key: Key, name: str | None, model: str | None = None) -> Shelf:
    """What the caller has of the model. Raises `ApiError`, `InvalidName`, and `MemoryNotFound` for a name that it may
    not see."""
    if name is not None and not key.may_see(check_name(name)):
        raise MemoryNotFound(f"there is no memory {name!r}")
    service = service_of(request)
    model = model or next(iter(service.registry.names(key)), None)
    return service.registry.shelf(service.registry.find(model, key), key)


@router.get("", responses={200: {"model": MemoriesAnswer}})
async def list_all(request: Request, key: Caller) -> Response:
    """All memories that the key may see."""
    shelf = _shelf(request, key, None)
    found = await asyncio.to_thread(list_memories, shelf.store)
    seen = [info for info in found if not shelf.is_own(info)]
    data = [each for each in working.listed(shelf, seen) if key.may_see(each["name"])]
    return JSONBytes({"object": "list", "data": data})


@router.get("/{name}", responses={200: {"model": MemoryAnswer}})
async def show(request: Request, name: Named, key: Caller) -> Response:
    """One memory."""
    return JSONBytes(await working.show(_shelf(request, key, name), name))


@router.delete("/{name}", responses={200: {"model": DeletedAnswer}})
async def delete(request: Request, name: Named, key: Caller) -> Response:
    """Delete a memory, and the texts that were sent for it. What others share with it stays."""
    key.check_writes()
    shelf, service = _shelf(request, key, name), service_of(request)
    async with shelf.changing(name):
        await asyncio.to_thread(delete_memory, name, shelf.store)
        shelf.forget(name)
        await asyncio.to_thread(sources.remove, sources.folder_of(key.tenant, name, service.settings))
    return JSONBytes({"object": "memory", "name": name, "deleted": True})


# ---------------------------------------------------------------------- made and kept up to date


@router.post("", status_code=201, responses={201: {"model": MemoryAnswer}, 200: {"content": STREAM}})
async def create(request: Request, body: CreateRequest, key: Caller) -> Response:
    """Read texts, or what lies at a path, into a new memory; with `stream`, progress comes as events."""
    key.check_writes()
    service = service_of(request)
    given = [what for what in (body.text, body.files, body.path) if what is not None]
    if len(given) != 1:
        raise ApiError("invalid_request", "give one of text, files and path")
    shelf = _shelf(request, key, body.name, body.model)
    await _check_new(shelf, body.name, bool(body.replace))
    filters: Json = {"use_gitignore": False}
    put: sources.Texts | None = None
    if body.path is not None:
        path = sources.below_a_root(body.path, service.settings)
        filters = {
            "include": tuple(body.include or ()),
            "exclude": tuple(body.exclude or ()),
            "max_file_bytes": body.max_file_bytes,
        }
    else:
        texts = [(file.path, file.text) for file in body.files or ()] or [("text.md", body.text or "")]
        put = sources.checked((name, text.encode("utf-8", "replace")) for name, text in texts)
        path = sources.folder_of(key.tenant, body.name, service.settings)
    work = working.reading(shelf, body.name, path, put, bool(body.replace), filters)
    return await _worked(request, service, key, work, shelf, body.name, bool(body.stream), 201)


@router.post("/{name}/upload", status_code=201, responses={201: {"model": MemoryAnswer}})
async def upload(
    request: Request,
    name: Named,
    files: Annotated[list[UploadFile], File(description=FILES)],
    key: Caller,
    model: Annotated[str | None, Query(description=MODEL)] = None,
    replace: Annotated[bool, Query(description="Whether it may take the place of a memory of that name.")] = False,
) -> Response:
    """Read uploaded files (multipart, field ``files``) into memory `name`."""
    key.check_writes()
    service, shelf = service_of(request), _shelf(request, key, name, model)
    await _check_new(shelf, name, replace)
    texts = [(file.filename or f"file-{place}", await file.read()) for place, file in enumerate(files)]
    path = sources.folder_of(key.tenant, name, service.settings)
    work = working.reading(shelf, name, path, sources.checked(texts), replace, {"use_gitignore": False})
    return await _worked(request, service, key, work, shelf, name, False, 201)


@router.post("/{name}/sync", responses={200: {"model": SyncedAnswer, "content": STREAM}})
async def sync(request: Request, name: Named, body: SyncRequest, key: Caller) -> Response:
    """Bring a memory up to date with its files; with `stream`, progress comes as events."""
    key.check_writes()
    service, shelf = service_of(request), _shelf(request, key, name, body.model)
    await working.show(shelf, name)
    changes: Json = {}
    work = working.syncing(shelf, name, body.mode, changes)
    return await _worked(request, service, key, work, shelf, name, bool(body.stream), 200, changes)


async def _check_new(shelf: Shelf, name: str, replace: bool) -> None:
    if not replace and await working.exists(shelf, name):
        raise working.taken(name)


async def _worked(
    request: Request,
    service: Service,
    key: Key,
    work: working.Work,
    shelf: Shelf,
    name: str,
    stream: bool,
    status: int,
    changes: Json | None = None,
) -> Response:
    """The memory when the work is done, or events until then. A client that leaves ends the work."""
    told = service.works.stream(lambda: working.events(service, key, work, shelf, name), service.settings.ping_seconds)
    if stream:
        return events(_progress(told, changes))
    last = await service.works.unless_left(request, _last(told))
    return JSONBytes(last | ({"changes": changes} if changes is not None else {}), status_code=status)


async def _last(told: AsyncGenerator[Json | None]) -> Json:
    memory: Json = {}
    async with contextlib.aclosing(told):
        async for event in told:
            if event is not None and event["type"] == "done":
                memory = event["memory"]
    return memory


async def _progress(told: AsyncGenerator[Json | None], changes: Json | None) -> AsyncGenerator[bytes]:
    try:
        async with contextlib.aclosing(told):
            async for event in told:
                if event is None:
                    yield KEEP_ALIVE
                    continue
                if event["type"] == "done" and changes is not None:
                    event["changes"] = changes
                yield sse(event, event["type"])
    except Exception as error:
        yield sse({"type": "error"} | openai_error(as_failure(error)), "error")


# ---------------------------------------------------------------------- shared


@router.post("/{name}/append", responses={200: {"model": HeadAnswer}})
async def append(request: Request, name: Named, body: AppendRequest, key: Caller) -> Response:
    """Add a text behind all that is there. With another head than the expected one: 409, and the head as it is."""
    key.check_writes()
    service, shelf = service_of(request), _shelf(request, key, name, body.model)
    await working.show(shelf, name)
    async with service.gate.place(key):
        return JSONBytes(await in_thread(lambda: append_text(shelf, name, body)))


def append_text(shelf: Shelf, name: str, body: AppendRequest) -> Json:
    """Append in this thread. Raises `ApiError` (409) for another head than the expected one."""
    with SharedContext.open(shelf.model.engine.engine, name, root=shelf.store) as shared:
        while True:
            expected = body.expected_head if body.expected_head is not None else shared.head()
            try:
                head = shared.append(body.text, expected, author=body.author)
            except Conflict as error:
                if body.expected_head is None:
                    continue
                raise ApiError("conflict", str(error), param="expected_head", more={"head": error.head}) from error
            return {"name": name, "head": head, "tokens": shared.length}


@router.get("/{name}/head", responses={200: {"model": HeadAnswer}})
async def head(
    request: Request,
    name: Named,
    key: Caller,
    after: Annotated[str | None, Query(description="The head that the caller knows. Default: none.")] = None,
    wait: Annotated[float, Query(description=WAIT, ge=0, allow_inf_nan=False)] = 0.0,
) -> Response:
    """The head of a memory. With `after` and `wait` (seconds): as soon as it is another one."""
    shelf, end = _shelf(request, key, name), time.monotonic() + min(wait, LONGEST_WAIT)
    found = await shelf.heads.now(name)
    while found == after and (left := end - time.monotonic()) > 0 and not service_of(request).gate.closed:
        if await shelf.heads.changed(name, found, min(left, LOOK_UP)):
            found = await shelf.heads.now(name)
        elif await request.is_disconnected():
            break
    return JSONBytes({"name": name, "head": found})


@router.post("/{name}/fork", status_code=201, responses={201: {"model": MemoryAnswer}})
async def fork(request: Request, name: Named, body: ForkRequest, key: Caller) -> Response:
    """A second memory of the first tokens. No page is copied."""
    key.check_writes()
    shelf = _shelf(request, key, name)
    if not key.may_see(body.name):
        raise ApiError("forbidden", f"the key {key.name} may not make a memory {body.name!r}", param="name")
    await working.show(shelf, name)
    if await working.exists(shelf, body.name):
        raise ApiError("conflict", f"there is a memory {body.name!r}", param="name")
    await asyncio.to_thread(fork_memory, name, body.name, shelf.store, at=body.at)
    return JSONBytes(await working.show(shelf, body.name), status_code=201)


# ---------------------------------------------------------------------- looked into


@router.get("/{name}/map", responses={200: {"model": MapAnswer}})
async def show_map(request: Request, name: Named, key: Caller) -> Response:
    """Where each file stands, in tokens from the beginning of the memory."""
    return await _looked_into(_shelf(request, key, name), name, inside.file_map)


@router.get("/{name}/bytes", responses={200: {"model": BytesAnswer}})
async def show_bytes(request: Request, name: Named, key: Caller) -> Response:
    """The bytes it takes, by kind, beside those that other architectures would keep for as many tokens."""
    return await _looked_into(_shelf(request, key, name), name, inside.sizes)


@router.get("/{name}/changes", responses={200: {"model": ChangesAnswer}})
async def show_changes(request: Request, name: Named, key: Caller) -> Response:
    """The files that are not as the memory read them. Reads the source, and changes nothing."""
    async with service_of(request).gate.place(key):
        return await _looked_into(_shelf(request, key, name), name, inside.changed)


@router.get("/{name}/source", responses={200: {"model": SourceAnswer}})
async def show_source(
    request: Request,
    name: Named,
    key: Caller,
    path: Annotated[str | None, Query(description=PATH)] = None,
    sha256: Annotated[str | None, Query(description=VERSION)] = None,
    first: Annotated[int | None, Query(ge=1, description="The first line. Default: 1.")] = None,
    last: Annotated[int | None, Query(ge=1, description=LAST)] = None,
    token: Annotated[int | None, Query(ge=0, description=TOKEN)] = None,
) -> Response:
    """Lines of a file as the memory read it: of the version whose digest a citation gave, or of the latest. Or the
    lines around a token."""
    if (path is None) == (token is None):
        raise ApiError("invalid_request", "give one of path and token", param="path")

    def lines(memory: Memory) -> Json:
        if token is not None:
            return inside.lines_at(memory, token)
        return inside.lines_of(memory, path or "", sha256, first, last)

    return await _looked_into(_shelf(request, key, name), name, lines)


async def _looked_into(shelf: Shelf, name: str, look: Callable[[Memory], Json]) -> Response:
    async with shelf.fork(name) as memory:
        return JSONBytes(await in_thread(lambda: look(memory)) | {"name": name})


# ---------------------------------------------------------------------- moved


@router.get("/{name}/export", response_class=StreamingResponse, responses={200: {"content": FILE}})
async def export(request: Request, name: Named, key: Caller) -> Response:
    """The memory as one file, checksummed."""
    shelf = _shelf(request, key, name)
    await working.show(shelf, name)
    file = await asyncio.to_thread(_exported, shelf, name)
    headers = {"content-disposition": f'attachment; filename="{name}.foveal"'}
    return StreamingResponse(_pieces(file), media_type="application/octet-stream", headers=headers)


def _exported(shelf: Shelf, name: str) -> BinaryIO:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile(dir=shelf.store.folder))
        export_memory(name, file, shelf.store)
        file.seek(0)
        stack.pop_all()  # whoever sends it closes it
        return file


async def _pieces(file: BinaryIO) -> AsyncGenerator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


@router.post(
    "/{name}/import",
    status_code=201,
    responses={201: {"model": MemoryAnswer}},
    openapi_extra={"requestBody": {"content": FILE, "required": True}},
)
async def import_(request: Request, name: Named, key: Caller) -> Response:
    """Enter an exported memory: the body is the file. No other memory uses its pages until they are computed again."""
    key.check_writes()
    shelf = _shelf(request, key, name)
    await _check_new(shelf, name, False)
    with tempfile.TemporaryFile(dir=shelf.store.folder) as file:
        async for piece in request.stream():
            await asyncio.to_thread(file.write, piece)
        file.seek(0)
        await asyncio.to_thread(import_memory, file, name, shelf.store)
    return JSONBytes(await working.show(shelf, name), status_code=201)


# ---------------------------------------------------------------------- asked


@router.post("/{name}/recall", responses={200: {"model": RecallAnswer}})
async def recall(request: Request, name: Named, body: RecallRequest, key: Caller) -> Response:
    """What followed a cue in the source, and the lines that it came from."""
    service, shelf = service_of(request), _shelf(request, key, name, body.model)
    return JSONBytes(await service.works.unless_left(request, recalled(service, key, shelf, name, body)))


async def recalled(service: Service, key: Key, shelf: Shelf, name: str, body: RecallRequest) -> Json:
    """The answer of a recall."""
    async with service.gate.place(key), shelf.fork(name) as memory:
        left = threading.Event()

        def run() -> Json:
            settings: dict[str, Any] = {"temperature": body.temperature, "seed": body.seed, "stop": stops_of(body.stop)}
            stream = memory.recall_stream(body.cue, max_tokens=body.max_tokens, **settings)
            with contextlib.closing(stream):
                for _ in stream:
                    if left.is_set():
                        return {}
            found = stream.result
            return {
                "memory": name,
                "cue": body.cue,
                "text": found.text,
                "finish_reason": str(found.finish_reason),
                "cue_tokens": found.cue_tokens,
                "cue_matched": found.cue_matched,
                "citations": [described(memory, citation) for citation in found.citations],
                "usage": {
                    "prompt_tokens": found.prompt_tokens,
                    "completion_tokens": len(found.tokens) - found.healed,
                    "cached_tokens": found.reused_tokens,
                },
            }

        return await in_thread(run, left.set)


@router.post("/{name}/search", responses={200: {"model": SearchAnswer}})
async def search(request: Request, name: Named, body: SearchRequest, key: Caller) -> Response:
    """The lines that hold a text, word for word."""
    service, shelf = service_of(request), _shelf(request, key, name, body.model)
    async with service.gate.place(key), shelf.fork(name) as memory:
        matches, complete = await in_thread(lambda: working.search(memory, body.text, body.limit))
    return JSONBytes({"memory": name, "matches": matches, "complete": complete})


@router.post("/{name}/ask", responses={200: {"model": AskAnswer, "content": STREAM}})
async def ask(request: Request, name: Named, body: AskRequest, key: Caller) -> Response:
    """Answer a question, with the lines that the answer rests on. A chat model words it from the places that fit best;
    with `stream`, places and pieces come as events."""
    service, shelf = service_of(request), _shelf(request, key, name, body.model)
    await working.show(shelf, name)
    asked = asking.Asked(body.question, body.with_, body.zoom, body.max_tokens, body.place_tokens)
    if not body.stream:
        return JSONBytes(await service.works.unless_left(request, asking.answered(service, key, shelf, name, asked)))
    source = service.works.stream(
        lambda: asking.answering(service, key, shelf, name, asked), service.settings.ping_seconds
    )
    return events(_progress(source, None))
