"""A step in progress, and the checks on what the network hands over.

A `Step` is all that exists between the first `append` and `advance`; dropping it undoes the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from foveal.cache.contract import LayerUpdate, OpenRows, Part, entry_width, parts_of
from foveal.cache.errors import CacheError
from foveal.cache.layout import CacheLayout
from foveal.cache.page import Page
from foveal.formats import F32, Array


@dataclass
class Step:
    """What `append` has taken since the last `advance`: `count` tokens, and for each layer its next tail."""

    count: int
    new_pages: list[Page]
    windows: dict[int, Array] = field(default_factory=dict)
    rows: dict[tuple[int, Part], OpenRows[Array]] = field(default_factory=dict)


def check_update(layout: CacheLayout, layer: int, update: LayerUpdate[Array], old: int, count: int) -> None:
    """Raise `CacheError` when what `count` tokens after `old` are said to leave in `layer` has a wrong shape."""
    config, new = layout.config, old + count
    parts = set(parts_of(config, layer))
    if set(update.entries) != parts or set(update.open_rows) != parts:
        found = sorted(set(update.entries) | set(update.open_rows))
        raise CacheError(f"layer {layer} has the compressors {sorted(parts)}, its update {found}")
    fresh = config.entries_after(new, layer) - config.entries_after(old, layer)
    expected: list[tuple[str, Array, tuple[int, int]]] = [("window rows", update.window, (count, config.head_dim))]
    for part in parts:
        shape = layout.open_shape(layer, part, new)
        expected.append((f"{part} open rows", update.open_rows[part].kv, shape))
        expected.append((f"{part} open gates", update.open_rows[part].gate, shape))
        expected.append((f"{part} entries", update.entries[part], (fresh, entry_width(config, part))))
    for name, tensor, shape in expected:
        if tuple(tensor.shape) != shape:
            raise CacheError(
                f"layer {layer}: {name} of {count} tokens after {old} must be {list(shape)}, not {list(tensor.shape)}"
            )


def token_ids(tokens: Array, count: int, vocabulary: int) -> Array:
    """`tokens` as int32 [count]. Raises `CacheError` when they are not `count` ids of the vocabulary."""
    if tokens.ndim != 1 or len(tokens) != count or not np.issubdtype(tokens.dtype, np.integer):
        raise CacheError(f"{count} token ids (integers) are due, not {tokens.dtype} {list(tokens.shape)}")
    if count and (int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary):
        raise CacheError(f"token ids must be 0 to {vocabulary - 1}, not {tokens.min()} to {tokens.max()}")
    return tokens.astype(np.int32, copy=False)


def own(rows: Array) -> Array:
    """`rows` in fp32, in memory of its own."""
    return np.array(rows, dtype=F32, order="C")
