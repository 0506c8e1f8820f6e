"""Work on memories that takes long: reading and syncing, with progress, until it is done or nobody waits any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foveal.memory import Memory, MemoryInfo, MemoryNotFound, Progress, ReadError, memory_info
from foveal.server.auth import Key
from foveal.server.citing import lines_in, text_of
from foveal.server.failures import ApiError, without_places
from foveal.server.memories.sources import TEXTS, Texts, holding
from foveal.server.registry import Shelf
from foveal.server.service import Service
from foveal.sources import SourceError

Json = dict[str, Any]
Work = Callable[[Callable[[Progress], None], Callable[[], bool]], None]
"""Does something, telling its progress, until it is asked to stop."""

SAVE_EVERY = 60.0
"""Seconds after which what was read so far is saved."""
TELL_EVERY = 0.25
"""Seconds between two events of progress."""


def told(info: MemoryInfo) -> Json:
    """A memory as JSON."""
    if info.problem is not None:
        empty = {"model": None, "tokens": 0, "complete": False}
        return {"object": "memory", "name": info.name, "problem": info.problem} | empty
    facts, totals = info.facts, info.facts["totals"]
    return {
        "object": "memory",
        "name": info.name,
        "model": facts["model"],
        "tokens": facts["tokens"],
        "complete": totals["complete"],
        "source_tokens": totals["tokens"],
        "files": totals["files"],
        "text_bytes": totals["text_bytes"],
        "source": _sources(facts["source"]),
        "created": facts["created"],
        "saved": facts["saved"],
        "parent": facts["parent"] or None,
        "forked_at": facts["forked_at"] or None,
        "pinned": facts["pinned"],
        "imported": bool(facts["origin"]),
        "problem": None,
    }


def _sources(source: Json) -> list[str]:
    """What a memory was read from, for people: the folders above are nobody's business. Empty: texts that were sent."""
    paths = [Path(path) for path in source.get("paths") or [source["source"]]]
    return [path.name or str(path) for path in paths if TEXTS not in path.parts[-4:]]


def listed(shelf: Shelf, infos: Sequence[MemoryInfo]) -> list[Json]:
    """Memories as JSON, those that are being read with how far that is."""
    rest = dict(shelf.reading)
    data = [told(info) | ({"reading": _reading(rest.pop(info.name))} if info.name in rest else {}) for info in infos]
    new = [
        {"object": "memory", "name": name, "model": shelf.model.name, "tokens": 0, "complete": False, "problem": None}
        | {"reading": _reading(progress)}
        for name, progress in rest.items()
    ]
    return data + new


def _reading(progress: Progress | None) -> Json:
    if progress is None:
        return {"tokens_done": 0, "tokens_total": 0, "tokens_per_second": None, "seconds_left": None}
    fields = ("tokens_done", "tokens_total", "tokens_per_second", "seconds_left")
    return {name: getattr(progress, name) for name in fields}


async def show(shelf: Shelf, name: str) -> Json:
    """A memory as JSON. Raises `MemoryNotFound`, also for a prompt that the server has saved."""
    info = await asyncio.to_thread(memory_info, name, shelf.store)
    if info.problem is None and shelf.is_own(info):
        raise MemoryNotFound(f"there is no memory {name!r}")
    return told(info)


async def exists(shelf: Shelf, name: str) -> bool:
    """Whether the tenant has a memory of that name."""
    try:
        await asyncio.to_thread(memory_info, name, shelf.store)
    except MemoryNotFound:
        return False
    return True


def reading(shelf: Shelf, name: str, place: Path, texts: Texts | None, replace: bool, filters: Json) -> Work:
    """Read what lies at `place` into memory `name`, and save it. `texts`: what shall lie there, and no longer if that
    fails. `replace`: whether there may be a memory of that name."""

    def work(progress: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
        before = _saved(shelf, name)
        if before and not replace:
            raise taken(name)
        with contextlib.ExitStack() as stack:
            if texts is not None:
                stack.enter_context(holding(place, texts, lambda: _saved(shelf, name) != before))
            try:
                memory = Memory.read(
                    shelf.model.engine.engine,
                    [str(place)],
                    name=name,
                    progress=progress,
                    should_stop=stop,
                    root=shelf.store,
                    save_every=SAVE_EVERY,
                    **filters,
                )
            except (ReadError, SourceError) as error:
                raise ApiError(error.code, without_places(error, [place])) from error
            _save(memory, shelf, name)

    return work


def taken(name: str) -> ApiError:
    """The refusal of a name that a memory has."""
    return ApiError("conflict", f"there is a memory {name!r}; delete it, sync it, or say replace")


def _saved(shelf: Shelf, name: str) -> str | None:
    """When memory `name` was saved last; None if there is none."""
    try:
        info = memory_info(name, shelf.store)
    except MemoryNotFound:
        return None
    return info.problem or str(info.facts["saved"])


def syncing(shelf: Shelf, name: str, mode: Any, changes: Json) -> Work:
    """Bring memory `name` up to date, and save it. What changed goes into `changes`."""

    def work(progress: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
        memory = Memory.load(shelf.model.engine.engine, name, root=shelf.store)
        with contextlib.ExitStack() as stack:
            stack.enter_context(memory)
            try:
                plan = memory.sync(mode, progress=progress, should_stop=stop, save_every=SAVE_EVERY)
            except (ReadError, SourceError) as error:
                raise ApiError(error.code, without_places(error, memory.options.named)) from error
            stack.pop_all()  # saving gives it back
        changes["changed"], changes["new"] = sorted(plan.changed), sorted(plan.new)
        changes["removed"] = sorted(skip.path for skip in plan.removed)
        _save(memory, shelf, name)

    return work


def _save(memory: Memory, shelf: Shelf, name: str) -> None:
    with memory:
        if not memory.length:
            raise ApiError("unavailable", "stopped before anything was read")
        memory.save(name, root=shelf.store)
        if memory.problem:
            raise ApiError("full", memory.problem)
    shelf.forget(name)


async def events(service: Service, key: Key, work: Work, shelf: Shelf, name: str) -> AsyncGenerator[Json]:
    """Do `work` in a thread. Events of progress, and in the end the memory. Closing it stops the work."""
    loop, stop = asyncio.get_running_loop(), threading.Event()
    latest: list[Progress] = []
    came = asyncio.Event()

    def progress(now: Progress) -> None:
        latest[:] = [now]
        shelf.reading[name] = now
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(came.set)

    async with service.gate.place(key), shelf.changing(name):
        shelf.reading[name] = None
        task = asyncio.create_task(asyncio.to_thread(work, progress, stop.is_set))
        task.add_done_callback(lambda _: came.set())
        try:
            yield {"type": "started", "name": name}
            while not task.done():
                await came.wait()
                came.clear()
                if latest and not task.done():
                    yield {"type": "progress", **asdict(latest.pop())}
                    await asyncio.wait({task}, timeout=TELL_EVERY)
            await task
        finally:
            stop.set()
            await asyncio.wait({task})
            shelf.reading.pop(name, None)
    yield {"type": "done", "memory": await show(shelf, name)}


def search(memory: Memory, text: str, limit: int) -> tuple[list[Json], bool]:
    """The lines of a memory that hold `text`, of the present versions of its files, and whether these are all."""
    found: list[Json] = []
    for path in dict.fromkeys(path for path, _, _ in memory.places.documents):
        for line, said in enumerate(lines_in(text_of(memory, path) or ""), start=1):
            if text in said:
                if len(found) == limit:
                    return found, False
                found.append({"path": path, "line": line, "text": said})
    return found, True


__all__ = ["events", "exists", "listed", "reading", "search", "show", "syncing", "taken", "text_of", "told"]
