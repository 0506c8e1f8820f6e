"""A sequence while native kernels run it: pages by address, the tail in rings that a step writes in place.

What is special here: everything in this module is derived. It can be dropped between two steps and made again from
pages and tail; the saved form of a tail is made from it only when somebody asks. A page's *pack* (its index keys in the
order the native dot products want) lies beside the page and is shared by all sequences that share the page.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import lru_cache

import torch

from foveal import _native
from foveal.cache.codec import EntryCodec, IndexFp4, IndexFp8, KvFp8
from foveal.cache.layout import CacheLayout, Region
from foveal.cache.page import Page
from foveal.cache.tail import Tail
from foveal.config import PAGE_TOKENS
from foveal.model.state import OpenRows, Part, open_row_count, parts_of, row_width


class Live:
    """Rings and page addresses of one sequence of `layout`.

    `fp4_keys`: index queries and keys go through the Hadamard rotation and FP4 at run time, so that keys may be packed
    as FP4 whatever the cache stores.
    """

    def __init__(self, layout: CacheLayout, *, fp4_keys: bool) -> None:
        self.layout = layout
        self.fp4_keys = fp4_keys
        self._shape = _shape(layout, fp4_keys)
        self.native = _native.Live(self._shape)
        self._held: list[torch.Tensor] = []
        """What `native` points into: a page may get another pack, or be let go, while this is still in use."""

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
        """Make the next pages of the sequence known; packs their keys when nobody has."""
        for number, page in enumerate(pages, start=self.native.page_count):
            if page.pack is None or page.pack_fp4 != self.fp4_keys:
                with torch.inference_mode(False):
                    page.pack = torch.zeros(self._shape.page_pack_bytes, dtype=torch.uint8)
                page.pack_fp4 = self.fp4_keys
                filled = min(max(self.native.length - number * PAGE_TOKENS, 0), PAGE_TOKENS)
                if filled:
                    _native.build_pack(_packer(), self._shape, page.data, page.pack, filled)
            self._held += (page.data, page.pack)
            self.native.add_page(page.data, page.pack)

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


@lru_cache(maxsize=1)
def _packer() -> _native.Runtime:
    """Packing needs kernels and no threads."""
    return _native.Runtime(threads=1)


@lru_cache(maxsize=16)
def _shape(layout: CacheLayout, fp4_keys: bool) -> _native.CacheShape:
    config = layout.config
    layers = []
    for layer in range(config.num_hidden_layers):
        ratio = config.compress_ratios[layer]
        parts = {part: _region(layout, layer, part) for part in parts_of(config, layer)}
        layers.append((ratio, parts.get(Part.MAIN), parts.get(Part.INDEX)))
    window = "f32" if layout.format.window_dtype is torch.float32 else "bf16"
    kind = _pack_kind(layout, fp4_keys)
    return _native.CacheShape(config.sliding_window, config.head_dim, config.qk_rope_head_dim, window, kind, layers)


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
