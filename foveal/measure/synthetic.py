"""A past that nobody read: a sequence's image with made-up entries, so that depth can be measured at once.

The entries look like real ones to the kernels: unit RMS, on the FP8 and FP4 grids that the official code rounds to, no
two of them equal (so scores do not tie), every page memory of its own. A bank of entries is made and encoded once; each
page shows a stretch of it under signs of its own for every channel, which are set in the encoded bytes, so a million
tokens take about as long as copying them. Being random, the keys are the worst case for anything that skips keys by
bounds.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from foveal import _native
from foveal.cache import CacheLayout, Part, Region, SequenceImage
from foveal.config import PAGE_TOKENS
from foveal.formats import F32, Array

_BANK_PAGES = 64
"""Pages' worth of entries in a bank."""


def make_image(layout: CacheLayout, length: int, *, seed: int = 0) -> SequenceImage:
    """A sequence of `length` random tokens with random entries, windows and open rows, for `Sequence.restore`.

    The same seed gives the same image. Takes the memory of the pages and little more.
    """
    config = layout.config
    generator = np.random.default_rng(seed)
    count = -(-length // PAGE_TOKENS)
    pages = [np.zeros(layout.page_bytes, dtype=np.uint8) for _ in range(count)]
    for region in layout.regions.values():
        _fill(pages, region, config.qk_rope_head_dim, generator)
    return SequenceImage(
        length=length,
        tokens=generator.integers(0, config.vocab_size, length, dtype=np.int32),
        pages=pages[: length // PAGE_TOKENS],
        open_page=pages[-1] if length % PAGE_TOKENS else None,
        tail=_tail(layout, length, generator),
    )


def _fill(pages: list[Array], region: Region, rotary: int, generator: np.random.Generator) -> None:
    """Entries for one region of all pages."""
    bank = _unit_rows(_BANK_PAGES * region.count, region.codec.width, generator)
    if region.part is Part.MAIN:
        _native.quantize_kv(_kernels(), bank, rotary)
    else:
        _native.quantize_index(_kernels(), bank)
    encoded = region.codec.encode(bank)
    flips = _sign_flips(region, len(pages), generator)
    for number, page in enumerate(pages):
        first = number % _BANK_PAGES * region.count
        rows = page[region.offset : region.offset + region.nbytes].reshape(region.count, region.entry_bytes)
        np.bitwise_xor(encoded[first : first + region.count], flips[number], out=rows)


def _sign_flips(region: Region, count: int, generator: np.random.Generator) -> Array:
    """For each of `count` pages the bits, uint8 [entry_bytes], that change the signs of random channels in any entry:
    those in which an encoded vector of plus and minus ones differs from one of ones."""
    signs = generator.integers(0, 2, (count, region.codec.width)).astype(F32) * np.float32(2) - np.float32(1)
    return region.codec.encode(signs) ^ region.codec.encode(np.ones((1, region.codec.width), dtype=F32))


def _tail(layout: CacheLayout, length: int, generator: np.random.Generator) -> dict[str, Array]:
    """Windows and open rows by name (`foveal.cache.tail`); MTP blocks were not run."""
    config, rotary = layout.config, layout.config.qk_rope_head_dim
    tail: dict[str, Array] = {}
    for layer in layout.windows:
        rows, width = layout.window_shape(length)
        window = _unit_rows(rows if layer < config.num_hidden_layers else 0, width, generator)
        _native.quantize_kv(_kernels(), window, rotary)
        tail[f"window.{layer}"] = window.astype(layout.format.window_dtype, copy=False)
    for layer, part in layout.regions:
        for name in ("kv", "gate"):
            shape = layout.open_shape(layer, part, length)
            tail[f"open.{layer}.{part}.{name}"] = _unit_rows(*shape, generator)
    return tail


def _unit_rows(rows: int, width: int, generator: np.random.Generator) -> Array:
    """Normal rows [rows, width] fp32 whose root mean square is 1."""
    made = generator.standard_normal((rows, width), dtype=F32)
    unit: Array = made / np.sqrt(np.square(made).mean(-1, keepdims=True))
    return unit


@cache
def _kernels() -> _native.Runtime:
    return _native.Runtime(threads=1)
