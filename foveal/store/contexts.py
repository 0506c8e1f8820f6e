"""What is done with contexts without a model: fork, delete, pin.

Each of them is one transaction, and none touches a page. Source maps need numpy, which takes longer to load than all
else together; so they are imported where one is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from foveal.checkpoint.identity import Fingerprint
from foveal.config import PAGE_TOKENS
from foveal.store.chain import node_at
from foveal.store.errors import CorruptMemory, FingerprintMismatch, NameExists, NoSuchToken, StoreError
from foveal.store.files import Presence, exclusive
from foveal.store.objects import Context, now, pack_tokens, unpack_tokens
from foveal.store.own_files import LIVE
from foveal.store.records import Kind
from foveal.store.store import Store
from foveal.store.writer import Writer

if TYPE_CHECKING:
    from foveal.sources import SourceMap

T = TypeVar("T")


def head_of(store: Store, context: Context) -> str:
    """A short name for all tokens of a context, in this store (32 hexadecimal digits)."""
    return store.names.tail_name(context.head, pack_tokens(context.rest))[:16].hex()


def same_tokens(one: Context, other: Context) -> bool:
    """Whether two contexts of one store are made of the same pages and tokens."""
    return (one.length, one.head, one.rest) == (other.length, other.head, other.rest)


def put_maps(tx: Writer, parts: list[tuple[int, bytes]]) -> tuple[tuple[tuple[int, bytes], ...], list[int]]:
    keys = [(end, tx.names.map_key(data), data) for end, data in parts]
    numbers = [tx.put(Kind.MAP, key, data, copies=2) for _, key, data in keys]
    return tuple((end, key) for end, key, _ in keys), numbers


def check_fingerprint(context: Context, fingerprint: Fingerprint) -> None:
    """Raises `FingerprintMismatch` naming the parts that differ, `CorruptMemory` when the context states none."""
    try:
        made_with = Fingerprint.from_dict(context.fingerprint)
    except ValueError as error:
        raise CorruptMemory(context.name, str(error)) from error
    differing = fingerprint.differing(made_with)
    if differing:
        raise FingerprintMismatch(differing)


def read_map(store: Store, context: Context) -> SourceMap:
    """The source map of a context. Raises `CorruptMemory` when both copies of a part are damaged."""
    from foveal.sources import SourceMapError
    from foveal.store import maps

    try:
        source_map = maps.join(read_parts(store, context))
        source_map.truncate(min(source_map.tokens, context.length))
    except SourceMapError as error:
        raise CorruptMemory(f"{context.name} (its source map)", str(error)) from error
    if context.maps and source_map.tokens != context.length:
        raise CorruptMemory(
            f"{context.name} (its source map)", f"it covers {source_map.tokens} tokens instead of {context.length}"
        )
    return source_map


def read_parts(store: Store, context: Context) -> list[bytes]:
    """The parts of a context's source map; a fork's last one may go on behind its tokens. Raises `CorruptMemory`."""
    return [_part(store, context, key) for _, key in context.maps]


def _part(store: Store, context: Context, key: bytes) -> bytes:
    """One part. Raises `CorruptMemory`."""
    data = store.insist(lambda: _read_part(store, key))
    if data is None:
        raise CorruptMemory(f"{context.name} (its source map)", "both copies are damaged")
    return data


def _read_part(store: Store, key: bytes) -> bytes | None:
    payload, _ = store.objects.fetch(Kind.MAP, key)
    if payload is None or store.names.map_key(bytes(payload)) != key:
        return None
    return bytes(payload)


def fork(
    store: Store, name: str, new: str, *, at: int | None = None, facts: Mapping[str, Any] | None = None
) -> Context:
    """A second context over the first `at` tokens of context `name` (default: all). No page is read or copied.

    Raises `MemoryNotFound`, and `StoreError` when `new` exists already or `at` is not within the context.
    """
    return on_current(store, name, lambda base: _fork(store, base, new, at, facts))


def on_current(store: Store, name: str, work: Callable[[Context], T]) -> T:
    """`work` on context `name` as it is; done again when it could not be done because others changed it meanwhile, and
    what it was made of is gone. Raises `MemoryNotFound` when it is gone itself, and what `work` raises."""
    while True:
        context = store.context(name)
        try:
            return work(context)
        except CorruptMemory:
            if store.context(name) == context:
                raise


def _fork(store: Store, base: Context, new: str, at: int | None, facts: Mapping[str, Any] | None) -> Context:
    name, length = base.name, base.length if at is None else at
    if not 0 < length <= base.length:
        raise NoSuchToken(f"cannot fork {name} at token {length}: it has {base.length}; give 1 to {base.length}")
    head, rest = _end_at(store, base, length)

    def work(tx: Writer) -> Context:
        if tx.index.contexts.get(tx.names.label(new)) is not None:
            raise NameExists(new)
        row = tx.index.contexts.get(tx.names.label(name))
        if row is None or store.records.read(row) != base:
            raise CorruptMemory(name, "it was changed while it was being forked")  # `on_current` tries again
        context = _forked(base, new, length, head, rest)
        context = context.replace(facts=dict(facts if facts is not None else base.facts))
        tx.put_context(context, tx.uses(context, like=row))
        return context

    return store.transact(work)


def _end_at(store: Store, base: Context, length: int) -> tuple[bytes, tuple[int, ...]]:
    """The last full page of the first `length` tokens of a context, and the tokens behind it."""
    full, behind = divmod(length, PAGE_TOKENS)
    if full == base.pages:
        return base.head, base.rest[:behind]
    node = node_at(store, base, full + 1)
    return node.parent, unpack_tokens(node.tokens)[:behind]


def _forked(base: Context, new: str, length: int, head: bytes, rest: tuple[int, ...]) -> Context:
    tails = tuple((position, key) for position, key in base.tails if position <= length)
    return base.replace(
        name=new,
        length=length,
        head=head,
        rest=rest,
        tails=tails,
        maps=_parts_of(base, length),
        created=now(),
        saved=now(),
        parent=base.name,
        forked_at=length,
        pinned=False,
        labels={},
    )


def _parts_of(base: Context, length: int) -> tuple[tuple[int, bytes], ...]:
    """The parts of a source map that the first `length` tokens need. The last may go on behind them; it is not cut."""
    starts = [0, *(end for end, _ in base.maps)]
    return tuple(
        (min(end, length), key) for start, (end, key) in zip(starts, base.maps, strict=False) if start < length
    )


def delete(store: Store, name: str) -> None:
    """Delete a context, and whatever no other one refers to. Raises `MemoryNotFound`."""
    store.transact(lambda tx: tx.drop_context(name), frees=True)


def delete_labelled(store: Store, digits: str) -> bool:
    """Delete the one context of this tenant whose label begins with these hexadecimal digits: its record, and so its
    name, may be damaged. Says whether there is one."""

    def work(tx: Writer) -> bool:
        rows = [row for row in tx.index.contexts.all() if row.tenant == tx.names.tenant]
        found = [row.label for row in rows if row.label.hex().startswith(digits)]
        if len(found) == 1:
            tx.index.contexts.drop(found[0])
            tx.put_gone(found[0])
        return len(found) == 1

    return store.transact(work, frees=True)


def change(store: Store, name: str, **changes: Any) -> Context:
    """Change what is said of a context: `pinned`, `labels`, `facts`. Raises `MemoryNotFound`."""
    store.context(name)  # its error is better than ours

    def work(tx: Writer) -> Context:
        row = tx.index.contexts.get(tx.names.label(name))
        context = store.context(name) if row is None else store.records.read(row)
        context = context.replace(**changes)
        tx.put_context(context, tx.uses(context, like=row))
        return context

    return store.transact(work)


@contextlib.contextmanager
def claim(store: Store, name: str) -> Iterator[None]:
    """Be the only one who makes context `name`, for long work whose end would replace what another made meanwhile.

    Raises `StoreBusy` at once when somebody else does, and `StoreError` when the store cannot be written to, so that
    neither is learned after hours.
    """
    folder = store.folder / LIVE
    store.check_writable()
    with contextlib.ExitStack() as stack:
        try:
            store.disk.make_folder(folder)
            path = folder / f"{store.names.label(name).hex()}.claim"
            stack.enter_context(exclusive(path, 0, f"is reading into memory {name!r} just now"))
        except OSError as error:
            raise StoreError(f"cannot write to the store {store.folder}: {error}") from error
        yield


def presence(store: Store, name: str) -> Presence | None:
    """Says that context `name` is in use, so that it is not evicted; None where the store cannot be written to."""
    with contextlib.suppress(OSError):
        folder = store.folder / LIVE
        store.disk.make_folder(folder)
        return Presence(folder / store.names.label(name).hex())
    return None
