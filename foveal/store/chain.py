"""The tokens of a context out of the store: from its head back to the root, proved by the names of its pages.

No page is read, and no array is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from foveal.config import PAGE_TOKENS
from foveal.store.errors import CorruptMemory
from foveal.store.files import Buffer
from foveal.store.hashes import NAME_BYTES, Names
from foveal.store.index import Index
from foveal.store.objects import Context, Node, pack_tokens, tail_position
from foveal.store.records import HEADER_BYTES, Kind, key_in
from foveal.store.rows import Entry
from foveal.store.store import Store


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
    root = store.names.root(fingerprint, context.origin)
    chain = store.insist(lambda: _verified(store, context, root, store.look(lambda index: entries_of(index, context))))
    if chain is None:
        raise CorruptMemory(f"{context.name} (its tokens)", "both copies are damaged")
    return chain


def node_at(store: Store, context: Context, page: int) -> Node:
    """The node of page number `page` (from 1) of a context, found from the nearest tail behind it, or from the head.

    That it is this context's is proved by the keys on the way, not believed of the index. Raises `CorruptMemory`.
    """
    node = store.insist(lambda: _climb(store, context, page))
    if node is None:
        raise CorruptMemory(f"{context.name} (its tokens)", "both copies are damaged")
    return node


def _climb(store: Store, context: Context, page: int) -> Node | None:
    near = [key for position, key in context.tails if position // PAGE_TOKENS >= page]
    about = (
        tail_position(payload) if near and (payload := store.objects.fetch(Kind.TAIL, near[0])[0]) is not None else None
    )
    for start in [context.head] if about is None else [about[1], context.head]:
        node = _climb_from(store, start, page)
        if node is not None:
            return node
    return None


def _climb_from(store: Store, start: bytes, page: int) -> Node | None:
    path = store.look(lambda index: index.objects.way_up(start, page * PAGE_TOKENS))
    begun = store.packs.beginnings([extent for _, extent in path], HEADER_BYTES + NAME_BYTES)
    for (key, _), (above, _), raw in zip(path, path[1:], begun, strict=False):
        # A key is a hash: damaged bytes do not lead to the key of any other node, so no checksum is needed here, unless
        # they have to be decrypted first.
        said = store.cipher is None and key_in(raw) == key and Node.parent_in(raw[HEADER_BYTES:]) == above
        if not said and not _leads(store, key, above):
            return None
    node = _node(store, path[-1][0]) if path else None
    return node if node is not None and node.position == page * PAGE_TOKENS else None


def _leads(store: Store, key: bytes, above: bytes) -> bool:
    """Whether a verified copy of node `key` has the parent `above`."""
    node = _node(store, key)
    return node is not None and node.parent == above


def _node(store: Store, key: bytes) -> Node | None:
    payload, _ = store.objects.fetch(Kind.NODE, key)
    return None if payload is None else Node.from_bytes(payload)


def entries_of(index: Index, context: Context) -> list[tuple[Entry, Entry | None]]:
    """The entries of a context's nodes, from the first page on, and of their pages (None: evicted), as far as the index
    leads to them."""
    if not context.pages:
        return []
    head = index.objects.find(Kind.NODE, context.head)
    return [] if head is None else index.objects.chain(head.id, context.pages)


def prove(
    names: Names, root: bytes, entries: Iterable[Entry], read: Callable[[Entry], Buffer | None]
) -> Iterator[tuple[bytes, Node]]:
    """The names and nodes of these entries, for as long as each is what was saved: their keys, from the root on, prove
    all tokens and page checksums. `read` gives the verified payload of an entry."""
    parent = name = root
    for number, entry in enumerate(entries, start=1):
        payload = read(entry)
        node = None if payload is None else Node.from_bytes(payload)
        if node is None or node.parent != parent or node.position != number * PAGE_TOKENS:
            return
        name = names.page_name(name, node.tokens)
        parent = names.node_key(parent, name, node.digest)
        if parent != entry.key:
            return
        yield name, node


def _verified(store: Store, context: Context, root: bytes, rows: list[tuple[Entry, Entry | None]]) -> Chain | None:
    """None when anything about the tokens is not as it was saved."""
    if len(rows) != context.pages or len(context.rest) != context.length % PAGE_TOKENS:
        return None
    entries = [entry for entry, _ in rows]
    nodes = [node for _, node in prove(store.names, root, entries, store.objects.read)]
    keys = [entry.key for entry in entries]
    if len(nodes) < len(entries) or (keys[-1] if keys else root) != context.head:
        return None
    tokens = b"".join(node.tokens for node in nodes) + pack_tokens(context.rest)
    return Chain(keys, nodes, [page for _, page in rows], tokens, root)
