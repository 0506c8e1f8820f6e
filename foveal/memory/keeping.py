"""What is done with saved memories without loading them: fork, export, import, and the head of a shared one."""

from __future__ import annotations

from typing import Any, BinaryIO

from foveal.memory.names import Root, check_name, opened
from foveal.store import contexts, transfer


def fork_memory(name: str, new: str, root: Root = None, *, at: int | None = None) -> dict[str, Any]:
    """Make memory `new` of the first `at` tokens of memory `name` (default: all). No page is copied.

    Raises `MemoryNotFound`, `InvalidName`, and `StoreError` when `new` exists or there are not so many tokens.
    """
    made = contexts.fork(opened(root, create=False), name, check_name(new), at=at)
    return {"name": made.name, "parent": made.parent, "forked_at": made.forked_at, "tokens": made.length}


def export_memory(name: str, file: BinaryIO, root: Root = None) -> int:
    """Write a memory to `file` (docs/store.md); returns the bytes. Raises as `foveal.store.transfer.export`."""
    return transfer.export(opened(root, create=False), name, file)


def import_memory(file: BinaryIO, name: str | None = None, root: Root = None) -> str:
    """Enter an exported memory, and return its name. No other memory uses its pages until they were computed again.

    Raises as `foveal.store.transfer.import_file`.
    """
    return transfer.import_file(opened(root), file, name).name


def head_of_memory(name: str, root: Root = None) -> str:
    """A name for all tokens that a memory has now. Raises `MemoryNotFound`."""
    store = opened(root, create=False)
    return contexts.head_of(store, store.context(name))
