"""A memory as files: what is in each, and back.

``tokens.bin`` int32 little-endian ids; ``pages.bin`` page after page, the open one last; ``tail.safetensors`` the tail
at the end, and the earlier ones that were kept for going back, each tensor as ``{position}/{name}``; ``source.bin`` the
source map. Sizes and checksums stand in the manifest (`foveal.memory.files`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from foveal.cache import CacheError, CacheLayout, Sequence, SequenceImage, Tail
from foveal.config import PAGE_TOKENS
from foveal.memory.errors import CorruptMemory, StoreError

TOKENS, PAGES, TAIL, SOURCE = "tokens.bin", "pages.bin", "tail.safetensors", "source.bin"
FILES = (TOKENS, PAGES, TAIL, SOURCE)


def pack(sequence: Sequence, source: bytes) -> dict[str, Iterable[bytes | memoryview]]:
    """The contents of the four files, in pieces; pages are not copied."""
    _check_byte_order()
    image = sequence.export()
    pages = [*image.pages, *([image.open_page] if image.open_page is not None else [])]
    tails = {f"{image.length}/{name}": tensor for name, tensor in image.tail.items()}
    for tail in sequence.kept_tails:
        if 0 < tail.position < image.length:
            tails |= {f"{tail.position}/{name}": tensor for name, tensor in tail.tensors().items()}
    own = {name: tensor.detach().to("cpu").clone() for name, tensor in tails.items()}
    return {
        TOKENS: [_bytes(image.tokens)],
        PAGES: [_bytes(page) for page in pages],
        TAIL: [safetensors.torch.save(own)],
        SOURCE: [source],
    }


@dataclass(frozen=True)
class Unpacked:
    """What the files hold: the end of the sequence, and earlier tails to go back to."""

    image: SequenceImage
    tails: list[Tail]


def unpack(files: Mapping[str, bytearray], layout: CacheLayout, length: int) -> Unpacked:
    """The inverse of `pack`. Raises `CorruptMemory` naming the file that does not fit `layout` and `length`."""
    _check_byte_order()
    tokens = torch.frombuffer(files[TOKENS], dtype=torch.int32) if files[TOKENS] else torch.empty(0, dtype=torch.int32)
    if len(files[TOKENS]) % 4 or len(tokens) != length:
        raise CorruptMemory(TOKENS, f"it does not hold {length} tokens")
    if length and not 0 <= int(tokens.min()) <= int(tokens.max()) < layout.config.vocab_size:
        raise CorruptMemory(TOKENS, "it holds ids outside the vocabulary")
    pages = _pages(files[PAGES], layout, length)
    tails = _tails(files[TAIL], layout, length)
    full = length // PAGE_TOKENS
    image = SequenceImage(
        length=length,
        tokens=tokens,
        pages=pages[:full],
        open_page=pages[full] if length % PAGE_TOKENS else None,
        tail=tails.pop(length),
    )
    try:
        return Unpacked(image, [Tail.from_tensors(layout, position, named) for position, named in tails.items()])
    except CacheError as error:
        raise CorruptMemory(TAIL, str(error)) from error


def _pages(data: bytearray, layout: CacheLayout, length: int) -> list[Tensor]:
    count, size = -(-length // PAGE_TOKENS), layout.page_bytes
    if len(data) != count * size:
        raise CorruptMemory(PAGES, f"it does not hold {count} pages of {size} bytes")
    if not data:
        return [torch.empty(0, dtype=torch.uint8) for _ in range(count)]
    return list(torch.frombuffer(data, dtype=torch.uint8).view(count, size))


def _tails(data: bytearray, layout: CacheLayout, length: int) -> dict[int, dict[str, Tensor]]:
    """Position -> named tensors, the one at `length` among them."""
    try:
        tensors = safetensors.torch.load(bytes(data))
        tails: dict[int, dict[str, Tensor]] = {length: {}}
        for name, tensor in tensors.items():
            position, _, rest = name.partition("/")
            tails.setdefault(int(position), {})[rest] = tensor
    except (safetensors.SafetensorError, ValueError) as error:
        raise CorruptMemory(TAIL, f"it cannot be read ({error})") from error
    if max(tails) > length or min(tails) < 0:
        raise CorruptMemory(TAIL, f"it holds a tail outside the {length} tokens")
    return tails


def _bytes(tensor: Tensor) -> memoryview:
    data: Any = tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy()
    return memoryview(data).cast("B")


def _check_byte_order() -> None:
    if sys.byteorder != "little":
        raise StoreError("memories are little-endian files; this machine is big-endian and is not supported")
