"""A sequence into the store: the pages it has not got, and its tails.

What is special here: saving starts behind the last page that the store knows already, so its cost is that of what came
since, however long the context is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from foveal import cache
from foveal.config import PAGE_TOKENS
from foveal.memory.store.names import checksum
from foveal.memory.store.objects import Node, StoredTail, tensor_bytes, token_bytes
from foveal.memory.store.records import Kind
from foveal.memory.store.store import Store, Writer


@dataclass(frozen=True)
class Saved:
    """A sequence in the store: what a `Context` needs, and `objects`, the numbers of what it uses."""

    length: int
    head: bytes
    rest: tuple[int, ...]
    tails: tuple[tuple[int, bytes], ...]
    objects: tuple[int, ...]


@dataclass(frozen=True)
class _Known:
    """A page's node: its key and name, and its number in the index."""

    key: bytes
    name: bytes
    number: int


def save_sequence(store: Store, tx: Writer, sequence: cache.Sequence, fingerprint: str, *, tails: bool = True) -> Saved:
    """Put what `sequence` is made of into the store, as far as it is not there. `tails` off keeps none at all.

    `fingerprint` is the digest of everything that its bytes depend on.
    """
    image = sequence.export()
    full = image.length // PAGE_TOKENS
    nodes = _nodes(store, tx, sequence.pages[:full], fingerprint)
    rest = image.tokens[full * PAGE_TOKENS :]
    kept = _tails(tx, sequence, image, nodes) if tails else {}
    objects = [number for _, number in kept.values()] + ([nodes[-1].number] if full else [])
    return Saved(
        image.length,
        nodes[-1].key,
        tuple(rest.tolist()),
        tuple((position, key) for position, (key, _) in sorted(kept.items())),
        tuple(objects),
    )


def _nodes(store: Store, tx: Writer, pages: tuple[cache.Page, ...], fingerprint: str) -> list[_Known]:
    """The nodes of `pages`, behind the root; those before the last known one are left out (but the root)."""
    root = tx.names.root(fingerprint)
    nodes = [_Known(root, root, 0)]
    start = 0
    for place in range(len(pages), 0, -1):
        known = store.known.node(pages[place - 1])
        entry = tx.index.find(Kind.NODE, known[0]) if known is not None else None
        if known is not None and entry is not None and entry.position == place * PAGE_TOKENS:
            nodes.append(_Known(*known, entry.id))
            start = place
            break
    for place in range(start, len(pages)):
        nodes.append(_put_page(store, tx, nodes[-1], pages[place], (place + 1) * PAGE_TOKENS))
    return nodes


def _put_page(store: Store, tx: Writer, parent: _Known, page: cache.Page, position: int) -> _Known:
    if page.tokens is None:
        raise cache.CacheError("an open page was to be saved as a full one")
    tokens, data = token_bytes(page.tokens), tensor_bytes(page.data)
    digest = checksum(data)
    name = tx.names.page_name(parent.name, tokens)
    key = tx.names.node_key(parent.key, name, digest)
    node = Node(parent.key, name, digest, position, tokens)
    number = tx.put(Kind.NODE, key, node.to_bytes(), copies=2, name=name, parent=parent.number, position=position)
    tx.put(Kind.PAGE, key, data, digest=digest, position=position)
    tx.learned.append((page, key, name))
    return _Known(key, name, number)


# ---------------------------------------------------------------------- tails


def _tails(
    tx: Writer, sequence: cache.Sequence, image: cache.SequenceImage, nodes: list[_Known]
) -> dict[int, tuple[bytes, int]]:
    """Position -> key and number, of the tail at the end and of those the sequence keeps."""
    chain = _Chain(tx, nodes, image.length // PAGE_TOKENS)
    kept = {}
    for tail in sequence.kept_tails:
        if 0 < tail.position < image.length:
            number = _put_tail(tx, chain, image, sequence, tail.position, partial(_tensors, tail))
            if number is not None:
                kept[tail.position] = number
    if image.length:
        last = _put_tail(tx, chain, image, sequence, image.length, lambda: image.tail)
        assert last is not None
        kept[image.length] = last
    return kept


def _tensors(kept: cache.Tail | cache.LaterTail) -> dict[str, Tensor] | None:
    tail = kept.read() if isinstance(kept, cache.LaterTail) else kept
    return None if tail is None else tail.tensors()


class _Chain:
    """The node after any number of pages; earlier ones than the last known are looked up when they are asked for."""

    def __init__(self, tx: Writer, nodes: list[_Known], full: int) -> None:
        self._index, self._nodes, self._full = tx.index, nodes, full
        self._old: list[_Known] | None = None

    def after(self, pages: int) -> _Known:
        back = self._full - pages
        fresh = len(self._nodes) - 1
        if pages == 0:
            return self._nodes[0]
        if back < fresh:
            return self._nodes[-1 - back]
        if self._old is None:
            first = self._full - fresh + 1
            found = self._index.chain(self._nodes[1].number, first)
            self._old = [_Known(entry.key, entry.name, entry.id) for entry, _ in found]
        return self._old[pages - 1]


def _put_tail(
    tx: Writer,
    chain: _Chain,
    image: cache.SequenceImage,
    sequence: cache.Sequence,
    position: int,
    read: Callable[[], dict[str, Tensor] | None],
) -> tuple[bytes, int] | None:
    """Key and number of the tail; None when it was elsewhere and is not to be had any more."""
    full, open_tokens = divmod(position, PAGE_TOKENS)
    node = chain.after(full)
    rest = token_bytes(image.tokens[full * PAGE_TOKENS : position])
    place = tx.names.tail_place(node.key, rest)
    if position < image.length:
        # The pages before it are the very same, and it is there only to go back to: any tail of the place will do.
        for entry in tx.index.named(Kind.TAIL, place):
            return entry.key, entry.id
    tensors = read()
    if tensors is None:
        return None
    open_page = memoryview(b"")
    if open_tokens:
        copy = cache.Page(sequence.pages[full].data.clone())
        copy.clear_after(sequence.layout, open_tokens)
        open_page = tensor_bytes(copy.data)
    data = StoredTail(place, node.key, position, rest, open_page, tensors).to_bytes()
    key = tx.names.tail_key(place, checksum(data))
    return key, tx.put(Kind.TAIL, key, data, name=place, parent=node.number, position=position)
