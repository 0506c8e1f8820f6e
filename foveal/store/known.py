"""Which pages in memory are which nodes of a store.

A page that was saved or loaded once is known by its object, so that saving again looks only at what came after the last
known page, and loading a second time shares what is in memory already.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.cache import Page
    from foveal.formats import Array


class KnownPages:
    """Which pages in memory are which nodes of a store. Pages are remembered for as long as somebody holds them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: weakref.WeakKeyDictionary[Page, tuple[bytes, bytes, bytes]] = weakref.WeakKeyDictionary()
        self._pages: weakref.WeakValueDictionary[bytes, Page] = weakref.WeakValueDictionary()

    def add(self, page: Page, key: bytes, name: bytes, root: bytes) -> None:
        """`root`: the one that key and name derive from."""
        with self._lock:
            self._nodes[page] = (key, name, root)
            self._pages[key] = page

    def node(self, page: Page, root: bytes) -> tuple[bytes, bytes] | None:
        """Key and name of the node a page is; None when it is none under `root`, whatever it is under others."""
        with self._lock:
            found = self._nodes.get(page)
        return found[:2] if found is not None and found[2] == root else None

    def has(self, key: bytes) -> bool:
        """Whether a node's bytes are in memory already."""
        with self._lock:
            page = self._pages.get(key)
        return page is not None and page.references > 0

    def data(self, key: bytes) -> Array | None:
        """The bytes of a node that are in memory already."""
        with self._lock:
            page = self._pages.get(key)
        return page.data if page is not None and page.references > 0 else None
