"""The models that are served, and for each tenant what belongs to it: memories, kept prompts, sampled turns.

Tenants share a model's weights and nothing else. Each has its own names in the store, its own kept prompts and its own
records, so that neither a hit nor the time of a miss tells of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from foveal.aio import AsyncEngine, Engine
from foveal.memory import Memory, MemoryInfo, MemoryNotFound, Progress, Store, StoredPrefixes, memory_info, open_store
from foveal.memory.kept import KeptPrefixes, Miss
from foveal.memory.options import tail_distance
from foveal.memory.prompts import SOURCE, SavedPrompts
from foveal.server.auth import Key
from foveal.server.failures import ApiError
from foveal.server.memories.heads import Heads
from foveal.server.settings import Settings, beside
from foveal.server.turns import Turns
from foveal.server.wire import now
from foveal.text.chat import ChatEncoding
from foveal.text.messages import Conversation

MOST_MEMORIES = 16
"""Memories that stay loaded for each tenant and model."""
MOST_WHYS = 64


@dataclass(frozen=True, kw_only=True)
class Why:
    """What was found of one prompt, and why not more."""

    request: str
    model: str
    memory: str | None
    prompt_tokens: int
    reused_tokens: int
    miss: Miss | None
    conversation: Conversation | None
    ids: npt.NDArray[np.int32] | None = None


class Shelf:
    """What one tenant has of one model."""

    def __init__(self, model: Model, tenant: str, settings: Settings) -> None:
        self.model, self.tenant = model, tenant
        self.store: Store = open_store(settings.store, create=True, tenant=tenant)
        self.kept = KeptPrefixes(
            model.engine.engine,
            stored=StoredPrefixes(self.store),
            saved=SavedPrompts(model.engine.engine, self.store) if settings.save_prompts else None,
            most_tokens=settings.kept_tokens,
            others=_Others(model, tenant),
        )
        engine = model.engine.engine
        self.tail_every = tail_distance("auto", engine.pool.layout, engine.batch.scheduler.chunk)
        self.heads = Heads(self.store)
        self.turns = Turns(self._turns_file(settings) if settings.save_prompts else None)
        self.whys: deque[Why] = deque(maxlen=MOST_WHYS)
        self._loaded: OrderedDict[str, tuple[object, Memory]] = OrderedDict()
        self._changing: set[str] = set()
        self.reading: dict[str, Progress | None] = {}
        """Memories that are read or synced here just now, and how far that is."""
        self._lock = threading.Lock()

    def _turns_file(self, settings: Settings) -> Path | None:
        """Where sampled turns are kept. An encrypted store keeps its secrets: None."""
        if self.store.cipher is not None:
            return None
        of = f"{self.tenant}\0{self.model.engine.engine.tokenizer.fingerprint()}"
        return beside(settings.store) / "turns" / f"{sha256(of.encode()).hexdigest()[:32]}.sqlite"

    @contextlib.asynccontextmanager
    async def fork(self, name: str) -> AsyncGenerator[Memory]:
        """A fork of memory `name` as it is saved now. Raises `MemoryNotFound`."""
        begin = asyncio.ensure_future(asyncio.to_thread(self._fork, name))
        try:
            await asyncio.shield(begin)
        except asyncio.CancelledError:
            await asyncio.wait({begin})
            if begin.exception() is None:
                await asyncio.to_thread(begin.result().free)
            raise
        memory = begin.result()
        try:
            yield memory
        finally:
            await asyncio.to_thread(memory.free)

    def _fork(self, name: str) -> Memory:
        info = memory_info(name, self.store)
        if info.problem is not None:
            raise ApiError("damaged", f"memory {name}: {info.problem}")
        if self.is_own(info):
            raise MemoryNotFound(f"there is no memory {name!r}")
        version = (info.facts["saved"], info.facts["tokens"])
        with self._lock:
            known = self._loaded.get(name)
            if known is None or known[0] != version:
                fresh = Memory.load(self.model.engine.engine, name, root=self.store)
                self._loaded[name] = (version, fresh)
                if known is not None:
                    known[1].free()
            self._loaded.move_to_end(name)
            memory = self._loaded[name][1].fork()
            while len(self._loaded) > MOST_MEMORIES:
                self._loaded.popitem(last=False)[1][1].free()
        return memory

    @contextlib.asynccontextmanager
    async def changing(self, name: str) -> AsyncGenerator[None]:
        """Be the only one here who changes memory `name`. Raises `ApiError` when somebody else does."""
        if name in self._changing:
            raise ApiError("busy", f"memory {name} is being changed just now; try again", retry=5)
        self._changing.add(name)
        try:
            yield
        finally:
            self._changing.discard(name)

    def is_own(self, info: MemoryInfo) -> bool:
        """Whether it is a prompt that the server has saved, and no memory that anybody made."""
        return info.facts.get("source", {}).get("source") == SOURCE

    def forget(self, name: str) -> None:
        """Let go of a memory that was deleted or is about to change."""
        with self._lock:
            known = self._loaded.pop(name, None)
        if known is not None:
            known[1].free()

    def close(self) -> None:
        """Give everything back."""
        for name in list(self._loaded):
            self.forget(name)
        self.kept.clear()
        self.turns.close()


@dataclass
class Model:
    """A model that is served. `encoding` is None where it cannot chat, and `silent` says why."""

    name: str
    engine: AsyncEngine
    encoding: ChatEncoding | None
    silent: str = ""
    created: int = field(default_factory=now)
    shelves: dict[str, Shelf] = field(default_factory=dict)
    all: Mapping[str, Model] = field(default_factory=dict, repr=False)

    @property
    def context_tokens(self) -> int:
        """Tokens that a prompt and its reply may have together."""
        return self.engine.engine.batch.context_length

    def make_room(self) -> bool:
        """Give up some of the kept prompts, of the tenant who has most; says whether there were any. For
        `foveal.batch.admission.Admission.spare`."""
        kept = sorted((shelf.kept for shelf in list(self.shelves.values())), key=lambda kept: -kept.tokens)
        return any(each.make_room() for each in kept)

    def chats(self) -> ChatEncoding:
        """The encoding. Raises `ApiError` for a model without one."""
        if self.encoding is None:
            raise ApiError("invalid_request", f"the model {self.name} cannot chat: {self.silent}", param="model")
        return self.encoding


class _Others:
    """What the tenant has kept for other models."""

    def __init__(self, model: Model, tenant: str) -> None:
        self._model, self._tenant = model, tenant

    def __iter__(self):  # type: ignore[no-untyped-def]
        for other in self._model.all.values():
            if other is not self._model and self._tenant in other.shelves:
                yield other.shelves[self._tenant].kept


@dataclass(frozen=True)
class Chosen:
    """The model that a request names, and the memory, if any."""

    model: Model
    memory: str | None
    shelf: Shelf


class Registry:
    """All models, by name and alias."""

    def __init__(self, engines: Mapping[str, tuple[Engine, ChatEncoding | None, str]], settings: Settings) -> None:
        """Name -> engine, encoding (or None), and why there is none."""
        self._settings = settings
        self.models: dict[str, Model] = {}
        for name, (engine, encoding, silent) in engines.items():
            model = Model(name, AsyncEngine(engine), encoding, silent, all=self.models)
            engine.batch.admission.spare = model.make_room
            self.models[name] = model
        self._lock = threading.Lock()

    def names(self, key: Key) -> list[str]:
        """What a caller may ask for: models and plain aliases."""
        plain = [alias for alias in self._settings.aliases if not set(alias) & set("*?[")]
        return [name for name in [*self.models, *plain] if key.may_use(self._named(name) or name)]

    def _named(self, name: str) -> str | None:
        if name in self.models:
            return name
        for alias, model in self._settings.aliases.items():
            if alias == name or fnmatchcase(name, alias):
                return model if model in self.models else None
        return None

    def find(self, name: str | None, key: Key) -> Model:
        """The model called `name`; without a name the only one. Raises `ApiError`."""
        only = next(iter(self.models)) if not name and len(self.models) == 1 else name
        named = self._named((only or "").removesuffix("[1m]"))
        if named is None or not key.may_use(named):
            known = ", ".join(self.names(key)) or "none"
            said = f"there is no model {name!r}" if name else "no model is named"
            raise ApiError("not_found", f"{said}; there are: {known}", param="model", detail="model_not_found")
        return self.models[named]

    def choose(self, name: str | None, key: Key, memory: str | None = None) -> Chosen:
        """The model, and the memory of ``name@memory`` or of `memory`. Raises `ApiError`."""
        base, said = self._parted((name or "").removesuffix("[1m]"))
        memory = memory if memory is not None else said
        model = self.find(base, key)
        if memory is not None and not key.may_see(memory):
            raise MemoryNotFound(f"there is no memory {memory!r}")
        return Chosen(model, memory, self.shelf(model, key))

    def _parted(self, name: str) -> tuple[str, str | None]:
        """Model and memory of ``name@memory``. An @ is part of a model's name where the model or its alias has one: a
        pattern without one is no reason to leave a memory out."""
        base, at, memory = name.partition("@")
        whole = name in self.models or any(
            "@" in alias and fnmatchcase(name, alias) for alias in self._settings.aliases
        )
        return (name, None) if whole or not at else (base, memory)

    def shelf(self, model: Model, key: Key) -> Shelf:
        """What the tenant of `key` has of a model."""
        with self._lock:
            if key.tenant not in model.shelves:
                model.shelves[key.tenant] = Shelf(model, key.tenant, self._settings)
            return model.shelves[key.tenant]

    async def close(self) -> None:
        """Give everything back, and end the engines."""
        for model in self.models.values():
            for shelf in model.shelves.values():
                await asyncio.to_thread(shelf.close)
            await model.engine.close()
