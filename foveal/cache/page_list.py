"""The pages of a sequence, in blocks that forks share whole.

A list never changes; growing, cutting and replacing make another one, which shares all blocks but those concerned. So a
fork counts a block where it would count 256 pages, and whoever was given a list may keep it. Who holds a list is the
sequence's business: it shares and releases `held` with the `PagePool`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import overload

from foveal.cache.page import Page

BLOCK_PAGES = 256
"""Pages of a block."""


class Block:
    """`BLOCK_PAGES` full pages. `references` counts the lists that hold it, as the `PagePool` was told; while there are
    any, it holds one reference of each page."""

    __slots__ = ("pages", "references")

    def __init__(self, pages: tuple[Page, ...]) -> None:
        self.pages = pages
        self.references = 0


@dataclass(frozen=True, slots=True, eq=False)
class PageList(Seq[Page]):
    """Pages in order: those of `blocks`, and then `newest`.

    Two lists are equal when they are made of the same pages. A slice is a tuple, and looks at the pages in it only.
    """

    blocks: tuple[Block, ...] = ()
    newest: tuple[Page, ...] = ()

    def __len__(self) -> int:
        return len(self.blocks) * BLOCK_PAGES + len(self.newest)

    @overload
    def __getitem__(self, index: int) -> Page: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Page, ...]: ...
    def __getitem__(self, index: int | slice) -> Page | tuple[Page, ...]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return tuple(self._span(start, stop)) if step == 1 else tuple(self[i] for i in range(start, stop, step))
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"page {index} of {len(self)}")
        block, behind = divmod(number, BLOCK_PAGES)
        in_blocks = block < len(self.blocks)
        return self.blocks[block].pages[behind] if in_blocks else self.newest[number - len(self.blocks) * BLOCK_PAGES]

    def __iter__(self) -> Iterator[Page]:
        return self._span(0, len(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PageList) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def held(self) -> tuple[Page | Block, ...]:
        """What one reference is due to of each, for as long as somebody has the list."""
        return (*self.blocks, *self.newest)

    def plus(self, pages: Iterable[Page]) -> PageList:
        """The list with more pages behind."""
        return PageList(self.blocks, (*self.newest, *pages))

    def packed(self) -> PageList:
        """The same pages, with as many in blocks as can be. All but the last one must be full."""
        bound = max(0, len(self.newest) - 1) // BLOCK_PAGES * BLOCK_PAGES
        if not bound:
            return self
        blocks = (Block(self.newest[start : start + BLOCK_PAGES]) for start in range(0, bound, BLOCK_PAGES))
        return PageList((*self.blocks, *blocks), self.newest[bound:])

    def first(self, count: int) -> PageList:
        """The first `count` pages. Of a block that is cut, they become the newest."""
        behind = len(self.blocks) * BLOCK_PAGES
        if count >= behind:
            return PageList(self.blocks, self.newest[: count - behind])
        whole = count // BLOCK_PAGES
        return PageList(self.blocks[:whole], self[whole * BLOCK_PAGES : count])

    def replaced(self, number: int, page: Page) -> PageList:
        """The list with `page` in place of page `number`, in a block of its own where that is in one."""
        block, behind = divmod(number, BLOCK_PAGES)
        if block < len(self.blocks):
            other = Block(_replaced(self.blocks[block].pages, behind, page))
            return PageList((*self.blocks[:block], other, *self.blocks[block + 1 :]), self.newest)
        return PageList(self.blocks, _replaced(self.newest, number - len(self.blocks) * BLOCK_PAGES, page))

    def _span(self, start: int, stop: int) -> Iterator[Page]:
        """The pages `start` to `stop` (not included)."""
        behind = len(self.blocks) * BLOCK_PAGES
        for block in range(start // BLOCK_PAGES, min(-(-stop // BLOCK_PAGES), len(self.blocks))):
            first = block * BLOCK_PAGES
            yield from self.blocks[block].pages[max(0, start - first) : stop - first]
        yield from self.newest[max(0, start - behind) : max(0, stop - behind)]


def _replaced(pages: tuple[Page, ...], number: int, page: Page) -> tuple[Page, ...]:
    return (*pages[:number], page, *pages[number + 1 :])
