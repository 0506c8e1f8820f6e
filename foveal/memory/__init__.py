"""Contexts that live: read a source once, recall from it with citations, fork, save, load.

memory = Memory.read(engine, "path/to/project", name="project")
answer = memory.recall("def parse_config(")
memory.save()
"""

from foveal.memory.citations import Citation, TokenOrigin, cite, origin_of
from foveal.memory.errors import (
    CorruptMemory,
    FingerprintMismatch,
    InvalidName,
    MemoryNotFound,
    ReadError,
    StoreError,
)
from foveal.memory.memory import Memory
from foveal.memory.names import MemoryInfo, delete_memory, list_memories, memory_info, memory_path, store_root
from foveal.memory.reading import Progress, ReadTotals, Resumed, SourceOptions
from foveal.memory.recall import Recall, RecallStream

__all__ = [
    "Citation",
    "CorruptMemory",
    "FingerprintMismatch",
    "InvalidName",
    "Memory",
    "MemoryInfo",
    "MemoryNotFound",
    "Progress",
    "ReadError",
    "ReadTotals",
    "Recall",
    "RecallStream",
    "Resumed",
    "SourceOptions",
    "StoreError",
    "TokenOrigin",
    "cite",
    "delete_memory",
    "list_memories",
    "memory_info",
    "memory_path",
    "origin_of",
    "store_root",
]
