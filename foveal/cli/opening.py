"""Opening what a command works on: the store, and the engine that fits a memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.cli.output import UserError, note, parse_limit

if TYPE_CHECKING:
    from foveal.cache import CacheFormat
    from foveal.engine import Engine
    from foveal.memory import Memory, MemoryInfo, MemoryStore, Store


def opened(folder: Path | None, *, create: bool = False, durability: str = "full") -> MemoryStore:
    """The store a command works on. Raises `MemoryNotFound` when it is not there and is not to be made."""
    from foveal.memory import open_store

    return open_store(folder, create=create, durability=durability)  # type: ignore[arg-type]


@contextmanager
def telling_of_imports(memory: Memory) -> Iterator[None]:
    """Raises `UserError` when the numbers that the network is given of an imported memory are none: that says nothing
    of its weights."""
    from foveal.errors import NotFiniteError

    try:
        yield
    except NotFiniteError as error:
        if not memory.origin:
            raise
        raise UserError(
            f"the pages that memory {memory.name} was imported with are not what a network computes; `foveal verify "
            f"--recompute --repair {memory.name}` computes them anew, or delete it"
        ) from error


def open_engine(
    model: str | None,
    threads: int | None,
    memory: MemoryInfo | None = None,
    *,
    memory_limit: str | None = None,
    store: Store | None = None,
) -> Engine:
    """The engine to read or recall with: `model`, or the one that `memory` was made with, storing the cache as it does.

    Under a `memory_limit` what no store has lies in `store`'s folder.
    Raises `UserError` when that model is not one that ships with Foveal and so must be named, and what opening raises.
    """
    from foveal.engine import SHIPPED, Engine

    kv = None if memory is None else _cache_of(memory)
    return Engine.open(
        model or (SHIPPED[0] if memory is None else model_of(memory)),
        threads=threads,
        kv=kv,
        memory_limit=parse_limit(memory_limit),
        scratch=store.folder if store is not None and os.access(store.folder, os.W_OK) else None,
    )


def model_of(memory: MemoryInfo) -> str:
    """The model that a memory was made with, by a name that can be opened. Raises `UserError`."""
    from foveal.engine import SHIPPED, own_model

    made_with = str(memory.facts.get("model"))
    if made_with not in SHIPPED and own_model(made_with) is None:
        raise UserError(f"memory {memory.name} was made with the model {made_with!r}; say where it is with --model DIR")
    return made_with


def _cache_of(memory: MemoryInfo) -> CacheFormat:
    """How the memory's cache is stored."""
    from foveal.cache import CacheFormat

    if memory.problem is not None:
        raise UserError(f"memory {memory.name}: {memory.problem}")
    entries, _, index = str(memory.facts.get("cache")).partition("+")
    try:
        return CacheFormat(entries, index)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"memory {memory.name}: {error}") from error


def keep_within(store: Store, limit: str | None) -> None:
    """Evict what is least valuable until the store takes no more than `limit` (None: it may take any)."""
    from foveal.store.eviction import evict

    most = parse_limit(limit)
    if most is not None and not evict(store, most).within:
        note(f"the store takes more than {limit}: what is left in it is pinned, in use, or tokens")
