"""Contexts that live: read a source once, recall from it with citations, fork, save, load.

memory = Memory.read(engine, "path/to/project", name="project")
answer = memory.recall("def parse_config(")
memory.save()
"""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.memory.citations import Citation as Citation
    from foveal.memory.citations import Place as Place
    from foveal.memory.citations import TokenOrigin as TokenOrigin
    from foveal.memory.citations import cite as cite
    from foveal.memory.citations import origin_of as origin_of
    from foveal.memory.errors import Conflict as Conflict
    from foveal.memory.errors import CorruptMemory as CorruptMemory
    from foveal.memory.errors import FingerprintMismatch as FingerprintMismatch
    from foveal.memory.errors import FormatError as FormatError
    from foveal.memory.errors import InvalidName as InvalidName
    from foveal.memory.errors import MemoryNotFound as MemoryNotFound
    from foveal.memory.errors import ReadError as ReadError
    from foveal.memory.errors import StoreBusy as StoreBusy
    from foveal.memory.errors import StoreError as StoreError
    from foveal.memory.errors import StoreUnavailable as StoreUnavailable
    from foveal.memory.memory import Memory as Memory
    from foveal.memory.names import MemoryInfo as MemoryInfo
    from foveal.memory.names import delete_memory as delete_memory
    from foveal.memory.names import list_memories as list_memories
    from foveal.memory.names import memory_info as memory_info
    from foveal.memory.names import open_store as open_store
    from foveal.memory.names import store_root as store_root
    from foveal.memory.prefixes import StoredPrefixes as StoredPrefixes
    from foveal.memory.reading import Progress as Progress
    from foveal.memory.reading import ReadTotals as ReadTotals
    from foveal.memory.reading import Resumed as Resumed
    from foveal.memory.reading import SourceOptions as SourceOptions
    from foveal.memory.recall import Recall as Recall
    from foveal.memory.recall import RecallStream as RecallStream
    from foveal.memory.shared import SharedContext as SharedContext
    from foveal.memory.store.store import Store as Store
    from foveal.memory.syncing import SyncCost as SyncCost
    from foveal.memory.syncing import SyncPlan as SyncPlan

_HOMES = {
    "Citation": "foveal.memory.citations",
    "Place": "foveal.memory.citations",
    "TokenOrigin": "foveal.memory.citations",
    "cite": "foveal.memory.citations",
    "origin_of": "foveal.memory.citations",
    "Conflict": "foveal.memory.errors",
    "CorruptMemory": "foveal.memory.errors",
    "FingerprintMismatch": "foveal.memory.errors",
    "FormatError": "foveal.memory.errors",
    "InvalidName": "foveal.memory.errors",
    "MemoryNotFound": "foveal.memory.errors",
    "ReadError": "foveal.memory.errors",
    "StoreBusy": "foveal.memory.errors",
    "StoreUnavailable": "foveal.memory.errors",
    "StoreError": "foveal.memory.errors",
    "Memory": "foveal.memory.memory",
    "MemoryInfo": "foveal.memory.names",
    "delete_memory": "foveal.memory.names",
    "list_memories": "foveal.memory.names",
    "memory_info": "foveal.memory.names",
    "open_store": "foveal.memory.names",
    "store_root": "foveal.memory.names",
    "StoredPrefixes": "foveal.memory.prefixes",
    "Progress": "foveal.memory.reading",
    "ReadTotals": "foveal.memory.reading",
    "Resumed": "foveal.memory.reading",
    "SourceOptions": "foveal.memory.reading",
    "Recall": "foveal.memory.recall",
    "RecallStream": "foveal.memory.recall",
    "SharedContext": "foveal.memory.shared",
    "Store": "foveal.memory.store.store",
    "SyncCost": "foveal.memory.syncing",
    "SyncPlan": "foveal.memory.syncing",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)
