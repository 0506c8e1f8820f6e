"""The tail: what the past leaves uncompressed at one position.

A `Tail` is immutable, like a full page. A step makes new tensors and never writes into old ones, so keeping a tail (for
`truncate`), forking and saving need only hold it.

Names of its tensors, as saved: ``window.{layer}`` [rows, c], ``open.{layer}.{part}.kv`` and ``.gate`` [rows, w].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from foveal.cache.contract import OpenRows, Part
from foveal.cache.errors import ImageError
from foveal.cache.layout import CacheLayout
from foveal.formats import F32, Array, DType


@dataclass(frozen=True)
class Tail:
    """Raw windows and open rows after `position` tokens.

    `windows[layer]` is [min(position, W - 1), c] in the format's window dtype, for each of the layout's layers and then
    for each MTP block; an MTP block that was not run at this position has 0 rows. `rows` holds each compressor's open
    rows in fp32.
    """

    position: int
    windows: Mapping[int, Array]
    rows: Mapping[tuple[int, Part], OpenRows[Array]]

    @classmethod
    def empty(cls, layout: CacheLayout) -> Tail:
        """The tail at position 0."""
        shape, dtype = layout.window_shape(0), layout.format.window_dtype
        windows = {layer: np.empty(shape, dtype) for layer in layout.windows}
        rows = {}
        for layer, part in layout.regions:
            none = np.empty(layout.open_shape(layer, part, 0), F32)
            rows[layer, part] = OpenRows(none, none)
        return cls(0, windows, rows)

    @classmethod
    def blank(cls, layout: CacheLayout, position: int) -> Tail:
        """A tail of zeros at `position`: what `foveal.cache.replay` begins with."""
        tensors = {name: np.zeros(shape, dtype) for name, (shape, dtype) in _expected(layout, position).items()}
        return cls.from_tensors(layout, position, tensors)

    def copy(self, copy: Callable[[Array], Array] = np.copy) -> Tail:
        """The same tail in memory of its own, which `copy` makes."""
        rows = {key: OpenRows(copy(r.kv), copy(r.gate)) for key, r in self.rows.items()}
        return Tail(self.position, {layer: copy(w) for layer, w in self.windows.items()}, rows)

    def window_bytes(self) -> int:
        """Bytes of the windows."""
        return sum(w.nbytes for w in self.windows.values())

    def open_bytes(self) -> int:
        """Bytes of the open rows."""
        return sum(r.kv.nbytes + r.gate.nbytes for r in self.rows.values())

    def nbytes(self) -> int:
        """Bytes of everything."""
        return self.window_bytes() + self.open_bytes()

    # ------------------------------------------------------------------ named tensors

    def tensors(self) -> dict[str, Array]:
        """Name -> tensor, in a fixed order. Nothing is copied."""
        named = {f"window.{layer}": window for layer, window in self.windows.items()}
        for (layer, part), rows in self.rows.items():
            named[f"open.{layer}.{part}.kv"] = rows.kv
            named[f"open.{layer}.{part}.gate"] = rows.gate
        return named

    @classmethod
    def from_tensors(cls, layout: CacheLayout, position: int, tensors: Mapping[str, Array]) -> Tail:
        """What `tensors` gave, as a tail with memory of its own.

        Raises `ImageError` listing every missing, unknown or ill-shaped tensor.
        """
        _check(layout, position, tensors)
        own = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
        windows = {layer: own[f"window.{layer}"] for layer in layout.windows}
        rows = {
            (layer, part): OpenRows(own[f"open.{layer}.{part}.kv"], own[f"open.{layer}.{part}.gate"])
            for layer, part in layout.regions
        }
        return cls(position, windows, rows)


@dataclass(frozen=True)
class LaterTail:
    """A tail at `position` that is elsewhere: `read` brings it, or None when it is not there any more, or damaged."""

    position: int
    read: Callable[[], Tail | None]


def _expected(layout: CacheLayout, position: int) -> dict[str, tuple[tuple[int, int], DType]]:
    """Name -> shape and dtype of a tail's tensors at `position`."""
    window = layout.window_shape(position), layout.format.window_dtype
    shapes = {f"window.{layer}": window for layer in layout.windows}
    for layer, part in layout.regions:
        shape = layout.open_shape(layer, part, position)
        shapes[f"open.{layer}.{part}.kv"] = shapes[f"open.{layer}.{part}.gate"] = (shape, F32)
    return shapes


def _check(layout: CacheLayout, position: int, tensors: Mapping[str, Array]) -> None:
    expected = _expected(layout, position)
    wrong = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    wrong += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    mtp = {f"window.{layer}" for layer in layout.windows if layer >= layout.config.num_hidden_layers}
    for name in expected.keys() & tensors.keys():
        (shape, dtype), found = expected[name], tensors[name]
        # An MTP block may lag behind the main layers, or not run at all: fewer rows are right there.
        fits = tuple(found.shape) == shape
        fewer = name in mtp and found.ndim == 2 and found.shape[0] <= shape[0] and found.shape[1] == shape[1]
        if not (fits or fewer) or found.dtype != dtype:
            wrong.append(f"{name} is {found.dtype} {list(found.shape)}, must be {dtype} {list(shape)}")
    if wrong:
        listed = "; ".join(sorted(wrong))
        raise ImageError(f"tail at position {position} does not fit this model and cache format: {listed}")
