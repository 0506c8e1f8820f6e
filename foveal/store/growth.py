"""How many bytes saving would add to a store, told before anything is computed.

It counts what `saving` writes, record by record: pages behind the last shared one, their nodes twice, new tails, and
the parts of the source map that are not there yet. It is exact but for the names of tensors and the context's own
record, some kilobytes; pages that the store has for another reason are not known here.
"""

from __future__ import annotations

from collections.abc import Iterable

from foveal.cache import CacheLayout
from foveal.config import PAGE_TOKENS
from foveal.sources import SourceMap
from foveal.store.maps import split
from foveal.store.objects import Node, StoredTail
from foveal.store.records import span_of

_TENSOR_NAME_BYTES = 96
"""What a tensor's name, shape and offsets take in a tail."""


def growth(
    layout: CacheLayout,
    *,
    common: int,
    tokens: int,
    tails: Iterable[int],
    before: SourceMap,
    after: SourceMap,
    about: int,
) -> int:
    """Bytes that a save adds when a context of which the store has the first `common` tokens has grown to `tokens`.

    `tails` are the positions of tails that are new, `before` and `after` the source maps, `about` the bytes of what is
    said of the context.
    """
    pages = tokens // PAGE_TOKENS - min(common, tokens) // PAGE_TOKENS
    node = len(Node(bytes(32), bytes(32), bytes(16), 0, bytes(4 * PAGE_TOKENS)).to_bytes())
    size = max(0, pages) * (span_of(layout.page_bytes) + 2 * span_of(node))
    size += sum(span_of(_tail_bytes(layout, position)) for position in set(tails))
    old = {data for _, data in split(before)}
    size += sum(2 * span_of(len(data)) for _, data in split(after) if data not in old)
    return size + span_of(about + 6 * (tokens % PAGE_TOKENS))


def _tail_bytes(layout: CacheLayout, position: int) -> int:
    tensors = len(layout.config.compress_ratios) + 2 * len(layout.regions)
    behind = position % PAGE_TOKENS
    empty = len(StoredTail(bytes(32), bytes(32), position, bytes(4 * behind), b"", b"").to_bytes())
    open_page = layout.page_bytes if behind else 0
    return empty + open_page + layout.tail_bytes(position) + tensors * _TENSOR_NAME_BYTES
