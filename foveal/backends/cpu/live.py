"""A sequence while native kernels run it: pages by address, the tail in rings that a step writes in place.

Everything in this module is derived. It can be dropped between two steps and made again from pages and tail; the saved
form of a tail is made from it only when somebody asks. What a step streams through (a page's index keys, in the order
the native dot products want, and its HCA entries) is copied to its slot in a slab, shared by all sequences that share
the page.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from foveal import _native
from foveal.backends.cpu.slabs import Slabs, Slot, slots_of
from foveal.cache.codec import EntryCodec, IndexFp4, IndexFp8, KvFp8
from foveal.cache.contract import OpenRows, Part, open_row_count, parts_of, row_width
from foveal.cache.layout import CacheLayout, Region
from foveal.cache.memory import HostMemory
from foveal.cache.page import Page
from foveal.cache.pool import PagePool
from foveal.cache.tail import Tail
from foveal.cache.work import InWork
from foveal.config import PAGE_TOKENS
from foveal.formats import F32, Array


@dataclass(frozen=True)
class LiveKeeper:
    """Keeps sequences for `runtime` (`foveal.cache.work.Keeper`); `fp4_keys` as in `Live`."""

    runtime: _native.Runtime
    fp4_keys: bool

    def keep(self, pool: PagePool) -> Live:
        """Raises `TypeError` for pages that the kernels cannot see."""
        if not isinstance(pool.memory, HostMemory):
            raise TypeError(f"the native kernels read pages in the host's memory, not in {type(pool.memory).__name__}")
        return Live(pool, self.runtime, fp4_keys=self.fp4_keys)

    def fits(self, kept: InWork) -> bool:
        return isinstance(kept, Live) and kept.fp4_keys == self.fp4_keys


class Live:
    """Rings and page addresses of one sequence of `layout`.

    `fp4_keys`: index queries and keys go through the Hadamard rotation and FP4 at run time, so that keys may be packed
    as FP4 whatever the cache stores. `runtime`: whose threads fill slots.
    """

    def __init__(self, pool: PagePool, runtime: _native.Runtime, *, fp4_keys: bool) -> None:
        self.layout = pool.layout
        self.fp4_keys = fp4_keys
        shape = cache_shape(pool.layout, fp4_keys)
        self.slabs = pool.beside(shape, lambda: Slabs(shape, pool.pager))
        self.native = _native.Live(self.slabs.shape)
        self._runtime = runtime
        self._held: list[Array | Slot] = []
        """What `native` points into: a page may get another slot, or be let go, while this is still in use."""

    def load(self, tail: Tail, pages: Seq[Page]) -> None:
        """Take over a sequence of which nothing is here yet."""
        position = tail.position
        for layer in range(self.layout.config.num_hidden_layers):
            window = tail.windows[layer]
            self.native.put_window(layer, position - len(window), position, _memory(window))
            for part in parts_of(self.layout.config, layer):
                rows = tail.rows[layer, part]
                first = position - len(rows.kv)
                self.native.put_open(layer, part is Part.INDEX, first, position, _memory(rows.kv), _memory(rows.gate))
        self.native.length = position
        self.add_pages(pages)

    def add_pages(self, pages: Seq[Page]) -> None:
        """Make the next pages of the sequence known; fills a slot for each that has none."""
        places: list[tuple[int, int, int]] = []
        fill: list[tuple[int, int, int]] = []
        tokens: list[int] = []
        fresh: list[tuple[Page, Slot]] = []
        for number, page in enumerate(pages, start=self.native.page_count):
            known = page.slot
            new = not isinstance(known, Slot) or not known.belongs_to(self.slabs)
            slot = self.slabs.take() if new or not isinstance(known, Slot) else known
            places.append((page.address, slot.address, slot.number))
            if new:
                fresh.append((page, slot))
                fill.append(places[-1])
                tokens.append(min(max(self.native.length - number * PAGE_TOKENS, 0), PAGE_TOKENS))
            self._held += (page.data, slot)
        _native.fill_slots(self._runtime, self.slabs.shape, fill, tokens)
        for page, slot in fresh:  # only now: whoever finds a slot at a page takes it to be filled
            page.slot = slot
        self.native.add_pages(places)

    def commit(self, count: int) -> None:
        """The step of `count` tokens is part of the past."""
        self.native.commit(count)

    def tail(self) -> Tail:
        """The tail at the present length, as arrays of its own. MTP blocks are not run here: their windows are
        empty."""
        config, layout, length = self.layout.config, self.layout, self.native.length
        windows: dict[int, Array] = {}
        rows: dict[tuple[int, Part], OpenRows[Array]] = {}
        for layer in layout.windows:
            (count, width), ran = layout.window_shape(length), layer < config.num_hidden_layers
            windows[layer] = np.empty((count if ran else 0, width), dtype=layout.format.window_dtype)
            if ran:
                self.native.get_window(layer, length - count, length, _memory(windows[layer]))
        for layer, part in layout.regions:
            count = open_row_count(config.compress_ratios[layer], length)
            shape = count, row_width(config, layer, part)
            kv, gate = np.empty(shape, dtype=F32), np.empty(shape, dtype=F32)
            self.native.get_open(layer, part is Part.INDEX, length - count, length, kv, gate)
            rows[layer, part] = OpenRows(kv, gate)
        return Tail(length, windows, rows)


def _memory(array: Array) -> Array:
    """An array as the native library takes it: contiguous, and BF16, which it does not know by name, as its bits."""
    plain = np.require(array, requirements=["C", "W"])
    return plain.view(np.uint16) if plain.itemsize == 2 else plain


@lru_cache(maxsize=16)
def cache_shape(layout: CacheLayout, fp4_keys: bool) -> _native.CacheShape:
    """The layout as kernels need it, with slabs of about `foveal.backends.cpu.slabs.SLAB_BYTES`."""
    one = _shape(layout, fp4_keys, slots=1)
    return _shape(layout, fp4_keys, slots=slots_of(one.slot_bytes))


def _shape(layout: CacheLayout, fp4_keys: bool, slots: int) -> _native.CacheShape:
    config = layout.config
    layers = []
    for layer in range(config.num_hidden_layers):
        ratio = config.compress_ratios[layer]
        parts = {part: _region(layout, layer, part) for part in parts_of(config, layer)}
        layers.append((ratio, parts.get(Part.MAIN), parts.get(Part.INDEX)))
    window = "f32" if layout.format.window_dtype == F32 else "bf16"
    kind = _pack_kind(layout, fp4_keys)
    widths = config.sliding_window, config.head_dim, config.qk_rope_head_dim
    return _native.CacheShape(*widths, window, kind, layers, slots)


def _region(layout: CacheLayout, layer: int, part: Part) -> tuple[str, int, int, int, int, int]:
    region: Region = layout.region(layer, part)
    width = row_width(layout.config, layer, part)
    return codec_name(region.codec), region.offset, region.count, region.entry_bytes, region.codec.width, width


def codec_name(codec: EntryCodec) -> str:
    """The native library's name of a codec."""
    if isinstance(codec, KvFp8):
        return "kv_fp8"
    if isinstance(codec, IndexFp4):
        return "index_fp4"
    if isinstance(codec, IndexFp8):
        return "index_fp8"
    return "f32" if codec.nbytes == 4 * codec.width else "bf16"


def _pack_kind(layout: CacheLayout, fp4_keys: bool) -> str:
    """What the stored keys are exactly: FP4 when they were rounded to it and the format lost nothing, else BF16 if they
    fit that, else fp32."""
    stored = layout.format.index
    if fp4_keys and stored != "fp8":
        return "fp4"
    return "bf16" if stored in ("bf16", "fp4") else "f32"
