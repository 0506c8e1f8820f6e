"""A sequence while native kernels run it: pages by address, the tail in rings that a step writes in place.

What is special here: everything in this module is derived. It can be dropped between two steps and made again from
pages and tail; the saved form of a tail is made from it only when somebody asks. What a step streams through (a page's
index keys, in the order the native dot products want, and its HCA entries) is copied to its slot in a slab, shared by
all sequences that share the page.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import lru_cache

import torch

from foveal import _native
from foveal.cache.codec import EntryCodec, IndexFp4, IndexFp8, KvFp8
from foveal.cache.layout import CacheLayout, Region
from foveal.cache.page import Page
from foveal.cache.pool import PagePool
from foveal.cache.slabs import Slot, slots_of
from foveal.cache.tail import Tail
from foveal.config import PAGE_TOKENS
from foveal.model.state import OpenRows, Part, open_row_count, parts_of, row_width


class Live:
    """Rings and page addresses of one sequence of `layout`.

    `fp4_keys`: index queries and keys go through the Hadamard rotation and FP4 at run time, so that keys may be packed
    as FP4 whatever the cache stores. `runtime`: whose threads fill slots.
    """

    def __init__(self, pool: PagePool, runtime: _native.Runtime, *, fp4_keys: bool) -> None:
        self.layout = pool.layout
        self.fp4_keys = fp4_keys
        self.slabs = pool.slabs(cache_shape(pool.layout, fp4_keys))
        self.native = _native.Live(self.slabs.shape)
        self._runtime = runtime
        self._held: list[torch.Tensor | Slot] = []
        """What `native` points into: a page may get another slot, or be let go, while this is still in use."""

    def load(self, tail: Tail, pages: Seq[Page]) -> None:
        """Take over a sequence of which nothing is here yet."""
        position = tail.position
        for layer in range(self.layout.config.num_hidden_layers):
            window = tail.windows[layer]
            self.native.put_window(layer, position - len(window), position, window.contiguous())
            for part in parts_of(self.layout.config, layer):
                rows = tail.rows[layer, part]
                first = position - len(rows.kv)
                self.native.put_open(
                    layer, part is Part.INDEX, first, position, rows.kv.contiguous(), rows.gate.contiguous()
                )
        self.native.length = position
        self.add_pages(pages)

    def add_pages(self, pages: Seq[Page]) -> None:
        """Make the next pages of the sequence known; fills a slot for each that has none."""
        places: list[tuple[int, int, int]] = []
        fill: list[tuple[int, int, int]] = []
        tokens: list[int] = []
        fresh: list[tuple[Page, Slot]] = []
        for number, page in enumerate(pages, start=self.native.page_count):
            new = page.slot is None or not page.slot.belongs_to(self.slabs)
            slot = self.slabs.take() if new or page.slot is None else page.slot
            places.append((page.data.data_ptr(), slot.address, slot.number))
            if new:
                fresh.append((page, slot))
                fill.append(places[-1])
                tokens.append(min(max(self.native.length - number * PAGE_TOKENS, 0), PAGE_TOKENS))
            self._held += (page.data, slot)
        _native.fill_slots(self._runtime, self.slabs.shape, fill, tokens)
        for page, slot in fresh:  # only now: whoever finds a slot at a page takes it to be filled
            page.slot = slot
        self.native.add_pages(places)

    def tail(self, windows: int) -> Tail:
        """The tail at the present length, as tensors of its own. `windows`: layers and MTP blocks; the latter are not
        run here, so their windows are empty."""
        config, length = self.layout.config, self.native.length
        made = []
        rows: dict[tuple[int, Part], OpenRows] = {}
        with torch.inference_mode(False):
            for layer in range(windows):
                shape, ran = self.layout.window_shape(length), layer < config.num_hidden_layers
                window = torch.empty(shape if ran else (0, shape[1]), dtype=self.layout.format.window_dtype)
                if ran:
                    self.native.get_window(layer, length - shape[0], length, window)
                made.append(window)
            for layer, part in self.layout.regions:
                count = open_row_count(config.compress_ratios[layer], length)
                kv = torch.empty(count, row_width(config, layer, part))
                gate = torch.empty_like(kv)
                self.native.get_open(layer, part is Part.INDEX, length - count, length, kv, gate)
                rows[layer, part] = OpenRows(kv, gate)
        return Tail(length, tuple(made), rows)


@lru_cache(maxsize=16)
def cache_shape(layout: CacheLayout, fp4_keys: bool) -> _native.CacheShape:
    """The layout as kernels need it, with slabs of about `foveal.cache.slabs.SLAB_BYTES`."""
    one = _shape(layout, fp4_keys, slots=1)
    return _shape(layout, fp4_keys, slots=slots_of(one.slot_bytes))


def _shape(layout: CacheLayout, fp4_keys: bool, slots: int) -> _native.CacheShape:
    config = layout.config
    layers = []
    for layer in range(config.num_hidden_layers):
        ratio = config.compress_ratios[layer]
        parts = {part: _region(layout, layer, part) for part in parts_of(config, layer)}
        layers.append((ratio, parts.get(Part.MAIN), parts.get(Part.INDEX)))
    window = "f32" if layout.format.window_dtype is torch.float32 else "bf16"
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
