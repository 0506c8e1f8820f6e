"""Options that several commands share, and opening the engine that fits a memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.output import UserError
from foveal.config import ModelConfig

if TYPE_CHECKING:
    from foveal.api import Engine
    from foveal.memory import MemoryInfo

SHARED_OUT_FROM = 1024
"""Models narrower than this run on one thread: a second gains nothing there, and waits for busy cores."""

Store = Annotated[
    Path | None, typer.Option("--store", help="Folder of all memories; default $FOVEAL_STORE or ~/.local/share/foveal.")
]
Model = Annotated[
    str | None, typer.Option("--model", help="nano, or a model directory; default: the memory's own, else nano.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: 1 for a small model, else all cores.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_engine(model: str | None, threads: int | None, memory: MemoryInfo | None = None) -> Engine:
    """The engine to read or recall with: `model`, or the one that `memory` was made with, storing the cache as it does.

    Raises `UserError` when that model is not one that ships with Foveal and so must be named, and what opening raises.
    """
    from foveal.api import SHIPPED, Engine
    from foveal.cache import CacheFormat

    if memory is None:
        chosen = model or SHIPPED[0]
        return Engine.open(chosen, threads=threads or _threads_for(chosen))
    if memory.problem is not None:
        raise UserError(f"memory {memory.name}: {memory.problem}")
    made_with = str(memory.facts.get("model"))
    if model is None and made_with not in SHIPPED:
        raise UserError(f"memory {memory.name} was made with the model {made_with!r}; say where it is with --model DIR")
    chosen = model or made_with
    kv, _, index = str(memory.facts.get("cache")).partition("+")
    kept = CacheFormat(kv, index)  # type: ignore[arg-type]
    return Engine.open(chosen, threads=threads or _threads_for(chosen), kv=kept)


def _threads_for(model: str) -> int | None:
    """1 when the model's matrices are too small to be worth sharing out, else None: torch's choice, all cores."""
    from foveal.api import model_folder

    config = ModelConfig.from_file(model_folder(model) / "config.json")
    return 1 if config.hidden_size < SHARED_OUT_FROM else None
