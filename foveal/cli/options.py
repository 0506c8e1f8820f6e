"""Options that several commands share, and opening the engine that fits a memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveal.cli.output import UserError, parse_count

if TYPE_CHECKING:
    from foveal.api import Engine
    from foveal.memory import Memory, MemoryInfo, Store

MOST_THREADS = 1024


def place(text: str) -> Path:
    """The path that was given. Raises `typer.BadParameter` when it is empty: a variable that is not set is not the
    current folder."""
    return Path(not_empty(text))


def not_empty(text: str) -> str:
    """`text`, which names a file or folder; as `place`."""
    if not text:
        raise typer.BadParameter("it is empty; name a file or a folder")
    return text


def path_option(*names: str, help: str) -> Any:
    """An option that takes a path."""
    return typer.Option(*names, parser=place, metavar="PATH", help=help)


StorePath = Annotated[
    Path | None,
    path_option("--store", help="Folder of the store; default $FOVEAL_STORE or ~/.local/share/foveal."),
]
Model = Annotated[
    str | None, typer.Option("--model", help="nano, or a model directory; default: the memory's own, else nano.")
]
Threads = Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads; default: one on each core.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(help="Memory this process may hold (2G); pages beyond that stay on the disk until they are needed."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def opened(folder: Path | None, *, create: bool = False, durability: str = "full") -> Store:
    """The store a command works on. Raises `MemoryNotFound` when it is not there and is not to be made."""
    from foveal.memory import open_store

    return open_store(folder, create=create, durability=durability)  # type: ignore[arg-type]


@contextmanager
def telling_of_imports(memory: Memory) -> Iterator[None]:
    """Raises `UserError` when the numbers that the network is given of an imported memory are none: that says nothing
    of its weights."""
    from foveal.model import NotFiniteError

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
    from foveal.api import SHIPPED, Engine
    from foveal.cache import CacheFormat

    kv, made_with = None, SHIPPED[0]
    if memory is not None:
        if memory.problem is not None:
            raise UserError(f"memory {memory.name}: {memory.problem}")
        made_with = str(memory.facts.get("model"))
        if model is None and made_with not in SHIPPED:
            raise UserError(
                f"memory {memory.name} was made with the model {made_with!r}; say where it is with --model DIR"
            )
        entries, _, index = str(memory.facts.get("cache")).partition("+")
        try:
            kv = CacheFormat(entries, index)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"memory {memory.name}: {error}") from error
    return Engine.open(
        model or made_with,
        threads=threads,
        kv=kv,
        memory_limit=None if memory_limit is None else parse_count(memory_limit),
        scratch=store.folder if store is not None and os.access(store.folder, os.W_OK) else None,
    )
