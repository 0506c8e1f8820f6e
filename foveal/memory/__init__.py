"""Contexts that live: read a source once, recall from it with citations, fork, save, load.

memory = Memory.read(engine, "path/to/project", name="project")
answer = memory.recall("def parse_config(")
memory.save()
"""

from foveal.memory.citations import Citation, Place, TokenOrigin, cite, origin_of
from foveal.memory.errors import (
    Conflict,
    CorruptMemory,
    FingerprintMismatch,
    FormatError,
    InvalidName,
    MemoryNotFound,
    ReadError,
    StoreBusy,
    StoreError,
)
from foveal.memory.memory import Memory
from foveal.memory.names import MemoryInfo, delete_memory, list_memories, memory_info, open_store, store_root
from foveal.memory.reading import Progress, ReadTotals, Resumed, SourceOptions
from foveal.memory.recall import Recall, RecallStream
from foveal.memory.shared import SharedContext
from foveal.memory.store.store import Store
from foveal.memory.syncing import SyncCost, SyncPlan

__all__ = [
    "Citation",
    "Conflict",
    "CorruptMemory",
    "FingerprintMismatch",
    "FormatError",
    "InvalidName",
    "Memory",
    "MemoryInfo",
    "MemoryNotFound",
    "Place",
    "Progress",
    "ReadError",
    "ReadTotals",
    "Recall",
    "RecallStream",
    "Resumed",
    "SharedContext",
    "SourceOptions",
    "Store",
    "StoreBusy",
    "StoreError",
    "SyncCost",
    "SyncPlan",
    "TokenOrigin",
    "cite",
    "delete_memory",
    "list_memories",
    "memory_info",
    "open_store",
    "origin_of",
    "store_root",
]
