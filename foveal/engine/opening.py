"""Opening a model: its checkpoint on a backend, its tokenizer, the format of its cache, and room for its sequences."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foveal.backends import Runner, backend_of
from foveal.batch import BatchEngine, ParameterError, Scheduler
from foveal.batch.room import pages_within
from foveal.cache import CacheFormat, CacheLayout, Pager
from foveal.checkpoint import fingerprint as model_fingerprint
from foveal.checkpoint import open_checkpoint
from foveal.config import Numerics
from foveal.engine.models import model_folder, model_name, recall_blanks
from foveal.process import space
from foveal.text import Tokenizer
from foveal.text.fitting import check_tokenizer

Backend = Literal["native", "reference"]

_ROOM, _STACK = 64 << 20, 9 << 20
"""Address space that a network is given to work in, and for each thread's stack."""


@dataclass(frozen=True)
class Opened:
    """A model that was opened: what `Engine` is made of."""

    runner: Runner
    tokenizer: Tokenizer
    weights: Callable[[], str]
    kv: CacheFormat
    batch: BatchEngine
    name: str
    recall_blanks: int
    pager: Pager | None
    page_limit: int | None


def open_model(
    model: str | Path,
    *,
    backend: Backend,
    threads: int | None,
    numerics: Numerics | None,
    kv: CacheFormat | None,
    memory_limit: int | None,
    scratch: str | Path | None,
    context_length: int | None,
    cache: int | str | None,
    step_budget: float | None,
) -> Opened:
    """Options and errors are those of `Engine.open`."""
    if memory_limit is not None and backend != "native":
        raise ValueError("a memory limit needs the native backend: the reference works on decoded copies")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ParameterError(f"threads is {threads!r}; it must be a number of CPU threads, at least 1, or None")
    if memory_limit is not None and type(memory_limit) is not int:
        raise ParameterError(f"memory_limit is {memory_limit!r}; it must be a number of bytes, or None")
    folder = model_folder(model)
    tokenizer = Tokenizer.from_file(folder)
    checkpoint = open_checkpoint(folder)
    check_tokenizer(tokenizer, checkpoint.config)
    numerics = numerics or Numerics()
    space.require(_ROOM + _STACK * (threads or os.cpu_count() or 1), "the network")
    runner = backend_of(backend).open_runner(checkpoint, numerics=numerics, threads=threads)
    kv = kv or default_format(numerics)
    batch = _batch_engine(runner, context_length, step_budget)
    layout = CacheLayout(checkpoint.config, kv)
    return Opened(
        runner=runner,
        tokenizer=tokenizer,
        weights=lambda: model_fingerprint(checkpoint.config, checkpoint.weights).hex(),
        kv=kv,
        batch=batch,
        name=model_name(model, folder),
        recall_blanks=recall_blanks(folder),
        pager=None if memory_limit is None else Pager(memory_limit, scratch),
        page_limit=None if cache is None else pages_within(layout, cache, batch.scheduler.max_running),
    )


def default_format(numerics: Numerics) -> CacheFormat:
    """The smallest cache format that loses nothing: FP8 and FP4 where the network rounds to them anyway."""
    return CacheFormat(kv="fp8" if numerics.kv else "bf16", index="fp4" if numerics.index else "bf16")


def _batch_engine(runner: Runner, context_length: int | None, step_budget: float | None) -> BatchEngine:
    """Where the last bits depend on where a prompt is cut, it is cut where the runner says."""
    if runner.grain == 1:
        scheduler = Scheduler(step_budget=step_budget)
        return BatchEngine(runner, scheduler=scheduler, batched=True, context_length=context_length)
    scheduler = Scheduler(chunk=runner.grain, step_budget=step_budget)
    return BatchEngine(runner, scheduler=scheduler, context_length=context_length)
