"""Where the index of a memory's text lies: a folder beside the store, so that the store holds nothing but its own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from foveal.store.store import Store


def index_path(store: Store, name: str) -> Path | None:
    """Where the index of memory `name` lies; None where its words may not lie on the disk in the clear, or it has no
    name."""
    if store.cipher is not None or not name:
        return None
    return store.folder.with_name(f"{store.folder.name}.search") / f"{store.names.label(name).hex()[:40]}.sqlite"


def forget_index(store: Store, name: str) -> None:
    """Delete the index of memory `name`, if there is one."""
    path = index_path(store, name)
    if path is not None:
        for end in ("", "-journal"):
            with contextlib.suppress(OSError):
                path.with_name(path.name + end).unlink()
