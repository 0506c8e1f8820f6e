"""The tokens of a context out of the store: from its head back to the root, proved by the names of its pages.

What is special here: no page is read, and no torch is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveal.config import PAGE_TOKENS
from foveal.memory.errors import CorruptMemory
from foveal.memory.store.index import Entry, Index
from foveal.memory.store.objects import Context, Node, pack_tokens
from foveal.memory.store.records import Kind
from foveal.memory.store.store import Store


@dataclass(frozen=True)
class Chain:
    """The pages of a context as the store has them: nodes, whose tokens and names were verified, and where the bytes
    lie (None: evicted)."""

    keys: list[bytes]
    nodes: list[Node]
    pages: list[Entry | None]
    tokens: bytes
    """All of the context's, as `pack_tokens` gives them."""
    root: bytes

    def key_after(self, pages: int) -> bytes:
        return self.keys[pages - 1] if pages else self.root


def read_chain(store: Store, context: Context, fingerprint: str) -> Chain:
    """The chain of a context. Raises `CorruptMemory` when its tokens are lost in both copies."""
    root = store.names.root(fingerprint)
    chain = store.insist(lambda: _verified(store, context, root, store.look(lambda index: _rows(index, context))))
    if chain is None:
        raise CorruptMemory(f"{context.name} (its tokens)", "both copies are damaged")
    return chain


def _rows(index: Index, context: Context) -> list[tuple[Entry, Entry | None]]:
    if not context.pages:
        return []
    head = index.find(Kind.NODE, context.head)
    return [] if head is None else index.chain(head.id, context.pages)


def _verified(store: Store, context: Context, root: bytes, rows: list[tuple[Entry, Entry | None]]) -> Chain | None:
    """None when anything about the tokens is not as it was saved: the names, from root to head, prove it."""
    if len(rows) != context.pages or len(context.rest) != context.length % PAGE_TOKENS:
        return None
    keys, nodes, parent, name = [], [], root, root
    for number, (entry, _) in enumerate(rows, start=1):
        payload = store.read_object(entry)
        node = None if payload is None else Node.from_bytes(payload)
        if node is None or node.parent != parent or node.position != number * PAGE_TOKENS:
            return None
        name = store.names.page_name(name, node.tokens)
        parent = store.names.node_key(parent, name, node.digest)
        if parent != entry.key:
            return None
        keys.append(parent)
        nodes.append(node)
    if parent != context.head:
        return None
    data = b"".join(node.tokens for node in nodes)
    return Chain(keys, nodes, [page for _, page in rows], data + pack_tokens(context.rest), root)
