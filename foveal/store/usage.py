"""How many bytes a store takes, and which of its contexts they belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from foveal.store.errors import IndexDamaged, StoreError
from foveal.store.index import Index
from foveal.store.records import Kind
from foveal.store.rows import ContextRow, Entry
from foveal.store.store import Store


def disk_bytes(store: Store) -> int:
    """Bytes of all packs."""
    return sum(store.packs.files().values())


@dataclass(frozen=True)
class Usage:
    """Bytes in the packs that only this context refers to, and that it shares with others."""

    own: int
    shared: int


def usage(store: Store) -> dict[str, Usage]:
    """Name -> bytes, of all contexts of this tenant that can be read."""
    return store.look(lambda index: _usage(store, index))


def _usage(store: Store, index: Index) -> dict[str, Usage]:
    entries = {entry.id: entry for entry in index.objects.all()}
    pages = {entry.key: entry for entry in entries.values() if entry.kind == Kind.PAGE}
    holders: dict[int, int] = defaultdict(int)
    held: list[tuple[ContextRow, list[Entry]]] = []
    for row in index.contexts.all():
        used = index.references.used_by(row.id)
        found = [entries[number] for number in used if number in entries]
        if len(found) < len(used):
            raise IndexDamaged(f"{index.path} refers to what it does not have")
        objects = [entry for entry in found if entry.kind != Kind.NODE]
        for node in _way_up(index, entries, found):
            objects += [node, *([pages[node.key]] if node.key in pages else [])]
        held.append((row, objects))
        for entry in objects:
            holders[entry.id] += 1
    result = {}
    for row, objects in held:
        if row.tenant != store.names.tenant:
            continue
        try:
            name = store.records.read(row).name
        except StoreError:
            continue
        own = sum(entry.span * len(entry.extents) for entry in objects if entry.pack and holders[entry.id] == 1)
        total = sum(entry.span * len(entry.extents) for entry in objects if entry.pack)
        result[name] = Usage(own + row.span, total - own)
    return result


def _way_up(index: Index, entries: dict[int, Entry], found: list[Entry]) -> Iterator[Entry]:
    """The node in `found` and those before it. Raises `IndexDamaged` where they do not lead to the first page."""
    node = next((entry for entry in found if entry.kind == Kind.NODE), None)
    while node is not None:
        yield node
        above = entries.get(node.parent)
        if node.parent and (above is None or above.kind != Kind.NODE or above.position >= node.position):
            raise IndexDamaged(f"{index.path} does not lead from a page to the one before it")
        node = above
