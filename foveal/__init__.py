"""Foveal: a compressed, forkable, citable memory for agents, on DeepSeek-V4's attention.

What is special here: names are imported when they are first used, so that ``import foveal.config`` or a command that
only lists files does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.api import Engine, Generation, open_engine
    from foveal.config import PRESETS, ModelConfig
    from foveal.engine import FinishReason, SamplingParams
    from foveal.memory import (
        Citation,
        CorruptMemory,
        FingerprintMismatch,
        Memory,
        Recall,
        StoreError,
        delete_memory,
        list_memories,
    )

_HOMES = {
    "Engine": "foveal.api",
    "Generation": "foveal.api",
    "open_engine": "foveal.api",
    "ModelConfig": "foveal.config",
    "PRESETS": "foveal.config",
    "FinishReason": "foveal.engine",
    "SamplingParams": "foveal.engine",
    "Citation": "foveal.memory",
    "CorruptMemory": "foveal.memory",
    "FingerprintMismatch": "foveal.memory",
    "Memory": "foveal.memory",
    "Recall": "foveal.memory",
    "StoreError": "foveal.memory",
    "delete_memory": "foveal.memory",
    "list_memories": "foveal.memory",
}

__version__ = "0.1.0"
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
