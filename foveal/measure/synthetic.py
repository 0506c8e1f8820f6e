"""A past that nobody read: a sequence's image with made-up entries, so that depth can be measured at once.

What is special here: the entries look like real ones to the kernels: unit RMS, on the FP8 and FP4 grids that the
official code rounds to, no two of them equal (so scores do not tie), every page memory of its own. A bank of entries is
made and encoded once; each page shows a stretch of it under signs of its own for every channel, which are set in the
encoded bytes, so a million tokens take about as long as copying them. Being random, the keys are the worst case for
anything that skips keys by bounds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foveal.cache import CacheLayout, Region, SequenceImage
from foveal.config import PAGE_TOKENS
from foveal.model.state import Part
from foveal.ops import reference

_BANK_PAGES = 64
"""Pages' worth of entries in a bank."""


def make_image(layout: CacheLayout, length: int, *, seed: int = 0) -> SequenceImage:
    """A sequence of `length` random tokens with random entries, windows and open rows, for `Sequence.restore`.

    The same seed gives the same image. Takes the memory of the pages and little more.
    """
    config = layout.config
    generator = torch.Generator().manual_seed(seed)
    count = -(-length // PAGE_TOKENS)
    pages = [torch.zeros(layout.page_bytes, dtype=torch.uint8) for _ in range(count)]
    for region in layout.regions.values():
        _fill(pages, region, config.qk_rope_head_dim, generator)
    return SequenceImage(
        length=length,
        tokens=torch.randint(0, config.vocab_size, (length,), dtype=torch.int32, generator=generator),
        pages=pages[: length // PAGE_TOKENS],
        open_page=pages[-1] if length % PAGE_TOKENS else None,
        tail=_tail(layout, length, generator),
    )


def _fill(pages: list[Tensor], region: Region, rotary: int, generator: torch.Generator) -> None:
    """Entries for one region of all pages."""
    bank = _unit_rows(_BANK_PAGES * region.count, region.codec.width, generator)
    bank = reference.quantize_kv(bank, rotary) if region.part is Part.MAIN else reference.quantize_index(bank)
    encoded = region.codec.encode(bank).numpy()
    flips = _sign_flips(region, len(pages), generator).numpy()
    for number, page in enumerate(pages):
        first = number % _BANK_PAGES * region.count
        rows = page.numpy()[region.offset : region.offset + region.nbytes].reshape(region.count, region.entry_bytes)
        np.bitwise_xor(encoded[first : first + region.count], flips[number], out=rows)


def _sign_flips(region: Region, count: int, generator: torch.Generator) -> Tensor:
    """For each of `count` pages the bits, uint8 [entry_bytes], that change the signs of random channels in any entry:
    those in which an encoded vector of plus and minus ones differs from one of ones."""
    signs = torch.randint(0, 2, (count, region.codec.width), generator=generator) * 2.0 - 1
    return region.codec.encode(signs) ^ region.codec.encode(torch.ones(1, region.codec.width))


def _tail(layout: CacheLayout, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Windows and open rows by name (`foveal.cache.tail`); MTP blocks were not run."""
    config, rotary = layout.config, layout.config.qk_rope_head_dim
    tail: dict[str, Tensor] = {}
    for layer in range(len(config.compress_ratios)):
        rows, width = layout.window_shape(length)
        window = _unit_rows(rows if layer < config.num_hidden_layers else 0, width, generator)
        tail[f"window.{layer}"] = reference.quantize_kv(window, rotary).to(layout.format.window_dtype)
    for layer, part in layout.regions:
        for name in ("kv", "gate"):
            shape = layout.open_shape(layer, part, length)
            tail[f"open.{layer}.{part}.{name}"] = _unit_rows(*shape, generator)
    return tail


def _unit_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Normal rows [rows, width] fp32 whose root mean square is 1."""
    made = torch.randn(rows, width, generator=generator)
    return made / made.square().mean(-1, keepdim=True).sqrt()
