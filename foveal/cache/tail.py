"""The tail: what the past leaves uncompressed at one position.

What is special here: a `Tail` is immutable, like a full page. A step makes new tensors and never writes into old ones,
so keeping a tail (for `truncate`), forking and saving need only hold it.

Names of its tensors, as saved: ``window.{layer}`` [rows, c], ``open.{layer}.{part}.kv`` and ``.gate`` [rows, w].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.cache.errors import ImageError
from foveal.cache.layout import CacheLayout
from foveal.model.state import OpenRows, Part


@dataclass(frozen=True)
class Tail:
    """Raw windows and open rows after `position` tokens.

    `windows[layer]` is [min(position, W - 1), c] in the format's window dtype, one for each layer and then one for
    each MTP block; an MTP block that was not run at this position has 0 rows. `rows` holds each compressor's open rows
    in fp32.
    """

    position: int
    windows: tuple[Tensor, ...]
    rows: Mapping[tuple[int, Part], OpenRows]

    @classmethod
    def empty(cls, layout: CacheLayout, device: torch.device | str = "cpu") -> Tail:
        """The tail at position 0."""
        config, dtype = layout.config, layout.format.window_dtype
        windows = tuple(torch.empty(0, config.head_dim, dtype=dtype, device=device) for _ in config.compress_ratios)
        rows = {}
        for layer, part in layout.regions:
            none = torch.empty(layout.open_shape(layer, part, 0), device=device)
            rows[layer, part] = OpenRows(none, none)
        return cls(0, windows, rows)

    @classmethod
    def blank(cls, layout: CacheLayout, position: int) -> Tail:
        """A tail of zeros at `position`: what `foveal.cache.replay` begins with."""
        tensors = {
            name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in _expected(layout, position).items()
        }
        return cls.from_tensors(layout, position, tensors)

    def copy(self, copy: Callable[[Tensor], Tensor] = torch.clone) -> Tail:
        """The same tail in memory of its own, which `copy` makes."""
        rows = {key: OpenRows(copy(r.kv), copy(r.gate)) for key, r in self.rows.items()}
        return Tail(self.position, tuple(copy(w) for w in self.windows), rows)

    def window_bytes(self) -> int:
        """Bytes of the windows."""
        return sum(w.nbytes for w in self.windows)

    def open_bytes(self) -> int:
        """Bytes of the open rows."""
        return sum(r.kv.nbytes + r.gate.nbytes for r in self.rows.values())

    def nbytes(self) -> int:
        """Bytes of everything."""
        return self.window_bytes() + self.open_bytes()

    # ------------------------------------------------------------------ named tensors

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, in a fixed order. Nothing is copied."""
        named = {f"window.{layer}": window for layer, window in enumerate(self.windows)}
        for (layer, part), rows in self.rows.items():
            named[f"open.{layer}.{part}.kv"] = rows.kv
            named[f"open.{layer}.{part}.gate"] = rows.gate
        return named

    @classmethod
    def from_tensors(
        cls, layout: CacheLayout, position: int, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> Tail:
        """What `tensors` gave, as a tail with memory of its own.

        Raises `ImageError` listing every missing, unknown or ill-shaped tensor.
        """
        _check(layout, position, tensors)
        own = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        windows = tuple(own[f"window.{layer}"] for layer in range(len(layout.config.compress_ratios)))
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


def _expected(layout: CacheLayout, position: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Name -> shape and dtype of a tail's tensors at `position`."""
    count = len(layout.config.compress_ratios)
    shapes = {f"window.{i}": (layout.window_shape(position), layout.format.window_dtype) for i in range(count)}
    for layer, part in layout.regions:
        shape = layout.open_shape(layer, part, position)
        shapes[f"open.{layer}.{part}.kv"] = shapes[f"open.{layer}.{part}.gate"] = (shape, torch.float32)
    return shapes


def _check(layout: CacheLayout, position: int, tensors: Mapping[str, Tensor]) -> None:
    expected = _expected(layout, position)
    wrong = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    wrong += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    mtp = {f"window.{i}" for i in range(layout.config.num_hidden_layers, len(layout.config.compress_ratios))}
    for name in expected.keys() & tensors.keys():
        (shape, dtype), found = expected[name], tensors[name]
        # An MTP block may lag behind the main layers, or not run at all: fewer rows are right there.
        fits = tuple(found.shape) == shape
        fewer = name in mtp and found.dim() == 2 and found.shape[0] <= shape[0] and found.shape[1] == shape[1]
        if not (fits or fewer) or found.dtype != dtype:
            wrong.append(f"{name} is {found.dtype} {list(found.shape)}, must be {dtype} {list(shape)}")
    if wrong:
        listed = "; ".join(sorted(wrong))
        raise ImageError(f"tail at position {position} does not fit this model and cache format: {listed}")
