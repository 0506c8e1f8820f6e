"""Where memories live: a store, and a plain name in it.

The store is an explicit argument, else the environment variable ``FOVEAL_STORE``, else ``~/.local/share/foveal``. The
key of an encrypted one is given to `open_store`, or stands in ``FOVEAL_STORE_KEY`` or in the file that
``FOVEAL_STORE_KEY_FILE`` names.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sqlite3
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.memory.asking.index_place import forget_index
from foveal.memory.memory_store import MemoryStore
from foveal.store import contexts, gc, usage
from foveal.store.about import ABOUT, read_about
from foveal.store.cipher import key_file, key_from
from foveal.store.errors import MemoryNotFound, StoreError, StoreUnavailable
from foveal.store.objects import Context
from foveal.store.schema import check_name as check_name
from foveal.store.store import Durability, Store

_KEY, _KEY_FILE = "FOVEAL_STORE_KEY", "FOVEAL_STORE_KEY_FILE"

_LABEL = re.compile(r"[0-9a-f]{12,64}")

Root = str | Path | Store | None
"""A store: its folder, or an open one; None for the default."""

_open: weakref.WeakValueDictionary[tuple[Path, str, str, bytes | None], MemoryStore] = weakref.WeakValueDictionary()
_lock = threading.Lock()


@dataclass(frozen=True)
class MemoryInfo:
    """What a store says of a memory, without loading it. `path` is the store's folder. `problem` is set, and `facts`
    empty, when its record is damaged."""

    name: str
    path: Path
    facts: dict[str, Any]
    problem: str | None = None


def store_root(root: str | Path | None = None) -> Path:
    """The folder of the store; not made before the first save."""
    chosen = root or os.environ.get("FOVEAL_STORE") or Path("~/.local/share/foveal")
    return Path(chosen).expanduser()


def open_store(
    root: str | Path | None = None,
    *,
    create: bool = True,
    durability: Durability = "full",
    tenant: str = "",
    key: bytes | None = None,
) -> MemoryStore:
    """The store at `root`: a folder, or None for the default one (``FOVEAL_STORE``, else ``~/.local/share/foveal``).

    It is the same object for as long as somebody holds it. `durability`, `tenant`, `key` and errors are those of
    `foveal.store.store.Store`; without `create` it raises `MemoryNotFound` where there is none.

    `key` is by default the one in the environment, if there is one.
    """
    folder, key = store_root(root).absolute(), key or _key()
    with _lock:
        store = _open.get((folder, durability, tenant, key))
        if store is None or not _is_at(store, folder):
            store = MemoryStore(folder, durability=durability, tenant=tenant, key=key, create=create)
            _open[folder, durability, tenant, key] = store
        return store


def opened(root: Root, *, create: bool = True) -> Store:
    """`root`, if it is an open store; else `open_store`."""
    return root if isinstance(root, Store) else open_store(root, create=create)


@atexit.register
def _close_all() -> None:
    """A store that is closed has its index in one file: SQLite takes its log in."""
    for store in list(_open.values()):
        with contextlib.suppress(StoreError, OSError, sqlite3.Error):
            store.close()


def _is_at(store: Store, folder: Path) -> bool:
    """Whether an open store still is the one in `folder`."""
    try:
        about = read_about(folder / ABOUT)
    except OSError:  # opening it says what is wrong
        return False
    return about is not None and about["store"] == store.id.hex()


def store_at(root: Root) -> Store | None:
    """The store at `root`, whose errors `open_store` raises. The default one is there only for what it saves: None when
    it was not made yet, or cannot be opened."""
    if root is not None:
        return opened(root)
    try:
        return open_store(create=False)
    except StoreError:
        return None


def _key() -> bytes | None:
    text, file = os.environ.get(_KEY), os.environ.get(_KEY_FILE)
    if text:
        return key_from(text)
    return key_file(file) if file else None


def find(location: str | Path, root: Root = None, *, create: bool = True) -> tuple[Store, str]:
    """Store and name of a memory. A string without a slash is a name; anything else is the store's folder and the name
    behind it (with a `root`: always a name). Raises `InvalidName`, `MemoryNotFound` without `create`, `StoreError`."""
    if root is not None or (isinstance(location, str) and "/" not in location):
        name = check_name(str(location))
        return opened(root, create=create), name
    path = Path(location).absolute()
    return open_store(path.parent, create=create), check_name(path.name)


def list_memories(root: Root = None) -> list[MemoryInfo]:
    """All memories, by name; damaged ones too, with their problem. Records are verified, pages are not."""
    try:
        store = opened(root, create=False)
    except MemoryNotFound:
        return []
    used = usage.usage(store)
    return [_info(store, found, used) for found in store.contexts()]


def memory_info(name: str, root: Root = None, *, sizes: bool = False) -> MemoryInfo:
    """What is known of one memory without loading it. With `sizes` its bytes are counted, which looks at every object
    in the store. Raises `InvalidName` or `MemoryNotFound`."""
    store, name = find(check_name(name), root, create=False)
    try:
        found: Context | StoreError = store.context(name)
    except MemoryNotFound as error:
        if (store.folder / name / "manifest.json").exists():
            raise MemoryNotFound(
                f"memory {name} was saved by an earlier version, whose folders are not read any more; delete "
                f"{store.folder / name} and read its source again"
            ) from error
        raise
    except StoreError as error:
        return MemoryInfo(name, store.folder, {}, str(error))
    return _info(store, found, usage.usage(store) if sizes else {})


def _info(store: Store, found: Context | StoreError, used: dict[str, usage.Usage]) -> MemoryInfo:
    if isinstance(found, StoreError):
        return MemoryInfo("?", store.folder, {}, str(found))
    taken = used.get(found.name, usage.Usage(0, 0))
    facts = {
        **found.facts,
        "created": found.created,
        "saved": found.saved,
        "tokens": found.length,
        "fingerprint": dict(found.fingerprint),
        "parent": found.parent,
        "forked_at": found.forked_at,
        "pinned": found.pinned,
        "origin": found.origin,
        "labels": dict(found.labels),
        "own_bytes": taken.own,
        "shared_bytes": taken.shared,
    }
    if not {"model", "cache", "source", "totals"} <= set(facts):
        return MemoryInfo(found.name, store.folder, {}, "it was not saved as a memory")
    facts["totals"]["complete"] = facts["totals"]["complete"] and found.length == facts["totals"]["tokens"]
    return MemoryInfo(found.name, store.folder, facts)


def delete_memory(name: str, root: Root = None) -> None:
    """Delete a memory; what others share with it stays.

    Any name that is in the store will do, plain or not, and so do the first 12 or more digits by which messages call a
    record that cannot be read. Raises `InvalidName`, `MemoryNotFound`, or `StoreError`.
    """
    try:
        store = opened(root, create=False)
        _delete(store, name)
        forget_index(store, name)
    except MemoryNotFound:
        check_name(name)  # its error is better
        raise
    with contextlib.suppress(StoreUnavailable):  # it is deleted; its space is given back another time
        gc.collect(store, threshold=0.5)


def _delete(store: Store, name: str) -> None:
    try:
        contexts.delete(store, name)
    except MemoryNotFound:
        if _LABEL.fullmatch(name) is None or not contexts.delete_labelled(store, name):
            raise
