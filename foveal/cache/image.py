"""A sequence as plain arrays, for saving, and the checks before one is taken back.

An image is judged by the layout it is to be restored into, all of it at once, before anything is acquired.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveal.cache.errors import ImageError
from foveal.cache.layout import CacheLayout
from foveal.config import PAGE_TOKENS
from foveal.formats import Array


@dataclass(frozen=True)
class SequenceImage:
    """A sequence as plain arrays, for saving.

    `tokens` is int32 [length]; `pages` are the full pages' bytes, uint8 [page_bytes] each, in order: the sequence's
    own memory, not to be written into. `open_page` is the open page's (zeros behind its entries) when
    ``length % 256 != 0``; `tail` the named arrays of `foveal.cache.tail`.
    """

    length: int
    tokens: Array
    pages: list[Array]
    open_page: Array | None
    tail: dict[str, Array]
    origin: str = ""
    """Who computed the bytes: "" this engine's like, else a name for somebody else (`Sequence.origin`)."""


def check_image(image: SequenceImage, layout: CacheLayout) -> None:
    """Raise `ImageError` listing every size and dtype that does not fit (the tail apart: `Tail.from_tensors`)."""
    size, full, rest = layout.page_bytes, *divmod(image.length, PAGE_TOKENS)
    wrong = []
    if image.length < 0 or tuple(image.tokens.shape) != (image.length,):
        wrong.append(f"{image.length} token ids are due, not {list(image.tokens.shape)}")
    if len(image.pages) != full:
        wrong.append(f"{full} full pages are due, not {len(image.pages)}")
    if (image.open_page is not None) != (rest > 0):
        wrong.append("an open page is due" if rest else "no open page is due at a multiple of 256 tokens")
    for name, data in [*((f"page {i}", page) for i, page in enumerate(image.pages)), ("open page", image.open_page)]:
        if data is not None and (data.dtype != np.uint8 or tuple(data.shape) != (size,)):
            wrong.append(f"{name} is {data.dtype} {list(data.shape)}, must be uint8 [{size}]")
    if wrong:
        raise ImageError(f"the image does not fit this model and cache format: {'; '.join(wrong)}")
