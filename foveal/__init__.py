"""Foveal: a compressed, forkable, citable memory for agents, on DeepSeek-V4's attention.

Names are imported when they are first used, so that ``import foveal.config`` or a command that only lists files does
not load torch.
"""

from __future__ import annotations

import sys

# Nothing else is imported: the command line begins here, and a signal may come before it has its handlers.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from foveal.aio import AsyncEngine as AsyncEngine
    from foveal.batch import FinishReason as FinishReason
    from foveal.batch import Generation as Generation
    from foveal.batch import Job as Job
    from foveal.batch import SamplingParams as SamplingParams
    from foveal.config import PRESETS as PRESETS
    from foveal.config import ModelConfig as ModelConfig
    from foveal.engine import Engine as Engine
    from foveal.memory import Citation as Citation
    from foveal.memory import CorruptMemory as CorruptMemory
    from foveal.memory import FingerprintMismatch as FingerprintMismatch
    from foveal.memory import Memory as Memory
    from foveal.memory import MemoryStore as MemoryStore
    from foveal.memory import Recall as Recall
    from foveal.memory import StoreError as StoreError
    from foveal.memory import delete_memory as delete_memory
    from foveal.memory import list_memories as list_memories
    from foveal.memory import open_store as open_store
    from foveal.process.version import __version__ as __version__

_HOMES = {  # name -> the room it lives in; the imports above tell type checkers the same
    "AsyncEngine": "foveal.aio",
    "Engine": "foveal.engine",
    "Generation": "foveal.batch",
    "Job": "foveal.batch",
    "ModelConfig": "foveal.config",
    "PRESETS": "foveal.config",
    "FinishReason": "foveal.batch",
    "SamplingParams": "foveal.batch",
    "Citation": "foveal.memory",
    "CorruptMemory": "foveal.memory",
    "FingerprintMismatch": "foveal.memory",
    "Memory": "foveal.memory",
    "MemoryStore": "foveal.memory",
    "Recall": "foveal.memory",
    "StoreError": "foveal.memory",
    "delete_memory": "foveal.memory",
    "list_memories": "foveal.memory",
    "open_store": "foveal.memory",
    "__version__": "foveal.process.version",
}

__all__ = [*_HOMES]


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for `package` that imports a name when it is first used. `homes`: name -> module it lives in."""

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return find


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
