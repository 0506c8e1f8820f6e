"""What a backend keeps of a sequence while it runs it: the protocols.

All of it is derived from pages and tail. It can be dropped between two steps and made again; a tail in the saved form
is made from it only when somebody asks. A backend that runs sequences as the contract says, layer by layer
(`foveal.cache.contract`), keeps nothing and needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from foveal.cache.page import Page
    from foveal.cache.pool import PagePool
    from foveal.cache.tail import Tail


class PageCopy(Protocol):
    """What a backend keeps beside a page, for all sequences that share it. It goes when the page is written into."""

    @property
    def nbytes(self) -> int: ...


class InWork(Protocol):
    """One sequence as its backend runs it. Steps change it, and nothing else."""

    def load(self, tail: Tail, pages: Seq[Page]) -> None:
        """Take over a sequence of which nothing is here yet."""
        ...

    def add_pages(self, pages: Seq[Page]) -> None:
        """These pages come next."""
        ...

    def commit(self, count: int) -> None:
        """The step of `count` tokens that was just run is part of the past. Without it, the step never was."""
        ...

    def tail(self) -> Tail:
        """The tail at the present length, in memory of its own."""
        ...


class Keeper(Protocol):
    """A backend that keeps sequences in work."""

    def keep(self, pool: PagePool) -> InWork:
        """Room for a sequence of `pool`."""
        ...

    def fits(self, kept: InWork) -> bool:
        """Whether `kept`, made by some keeper, can go on here."""
        ...
