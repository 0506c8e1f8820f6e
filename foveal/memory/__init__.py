"""Contexts that live: read a source once, recall from it with citations, fork, save, load.

memory = Memory.read(engine, "path/to/project", name="project")
answer = memory.recall("def parse_config(")
memory.save()
"""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.memory.asking.answering import Answer as Answer
    from foveal.memory.asking.answering import AnswerStream as AnswerStream
    from foveal.memory.asking.chat_model import ChatModel as ChatModel
    from foveal.memory.asking.chat_model import NoChatModel as NoChatModel
    from foveal.memory.asking.places import Found as Found
    from foveal.memory.asking.support import AnswerCitation as AnswerCitation
    from foveal.memory.citations import Citation as Citation
    from foveal.memory.citations import Place as Place
    from foveal.memory.citations import TokenOrigin as TokenOrigin
    from foveal.memory.citations import cite as cite
    from foveal.memory.citations import origin_of as origin_of
    from foveal.memory.memory import Memory as Memory
    from foveal.memory.memory_store import MemoryStore as MemoryStore
    from foveal.memory.memory_store import NameTaken as NameTaken
    from foveal.memory.names import MemoryInfo as MemoryInfo
    from foveal.memory.names import delete_memory as delete_memory
    from foveal.memory.names import list_memories as list_memories
    from foveal.memory.names import memory_info as memory_info
    from foveal.memory.names import open_store as open_store
    from foveal.memory.names import store_root as store_root
    from foveal.memory.options import SourceOptions as SourceOptions
    from foveal.memory.prefixes import StoredPrefixes as StoredPrefixes
    from foveal.memory.progress import Progress as Progress
    from foveal.memory.progress import ReadTotals as ReadTotals
    from foveal.memory.progress import Resumed as Resumed
    from foveal.memory.recall import Recall as Recall
    from foveal.memory.recall import RecallStream as RecallStream
    from foveal.memory.shared import SharedContext as SharedContext
    from foveal.memory.syncing import SyncCost as SyncCost
    from foveal.memory.syncing import SyncPlan as SyncPlan
    from foveal.store.errors import Conflict as Conflict
    from foveal.store.errors import CorruptMemory as CorruptMemory
    from foveal.store.errors import FingerprintMismatch as FingerprintMismatch
    from foveal.store.errors import FormatError as FormatError
    from foveal.store.errors import InvalidName as InvalidName
    from foveal.store.errors import MemoryNotFound as MemoryNotFound
    from foveal.store.errors import ReadError as ReadError
    from foveal.store.errors import StoreBusy as StoreBusy
    from foveal.store.errors import StoreError as StoreError
    from foveal.store.errors import StoreUnavailable as StoreUnavailable
    from foveal.store.store import Store as Store

_HOMES = {
    "Answer": "foveal.memory.asking.answering",
    "AnswerStream": "foveal.memory.asking.answering",
    "ChatModel": "foveal.memory.asking.chat_model",
    "NoChatModel": "foveal.memory.asking.chat_model",
    "Found": "foveal.memory.asking.places",
    "AnswerCitation": "foveal.memory.asking.support",
    "Citation": "foveal.memory.citations",
    "Place": "foveal.memory.citations",
    "TokenOrigin": "foveal.memory.citations",
    "cite": "foveal.memory.citations",
    "origin_of": "foveal.memory.citations",
    "Conflict": "foveal.store.errors",
    "CorruptMemory": "foveal.store.errors",
    "FingerprintMismatch": "foveal.store.errors",
    "FormatError": "foveal.store.errors",
    "InvalidName": "foveal.store.errors",
    "MemoryNotFound": "foveal.store.errors",
    "ReadError": "foveal.store.errors",
    "StoreBusy": "foveal.store.errors",
    "StoreUnavailable": "foveal.store.errors",
    "StoreError": "foveal.store.errors",
    "Memory": "foveal.memory.memory",
    "MemoryStore": "foveal.memory.memory_store",
    "NameTaken": "foveal.memory.memory_store",
    "MemoryInfo": "foveal.memory.names",
    "delete_memory": "foveal.memory.names",
    "list_memories": "foveal.memory.names",
    "memory_info": "foveal.memory.names",
    "open_store": "foveal.memory.names",
    "store_root": "foveal.memory.names",
    "StoredPrefixes": "foveal.memory.prefixes",
    "Progress": "foveal.memory.progress",
    "ReadTotals": "foveal.memory.progress",
    "Resumed": "foveal.memory.progress",
    "SourceOptions": "foveal.memory.options",
    "Recall": "foveal.memory.recall",
    "RecallStream": "foveal.memory.recall",
    "SharedContext": "foveal.memory.shared",
    "Store": "foveal.store.store",
    "SyncCost": "foveal.memory.syncing",
    "SyncPlan": "foveal.memory.syncing",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)
