"""What one call of `recompute` goes by, and what came of it so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from foveal import cache
from foveal.cache.replay import replay
from foveal.checkpoint.identity import Fingerprint
from foveal.config import PAGE_TOKENS
from foveal.errors import ParameterError
from foveal.formats import Array
from foveal.store.errors import CorruptMemory
from foveal.store.loading import Runner
from foveal.store.objects import Context
from foveal.store.report import Problem
from foveal.store.store import Store

OnRecompute = Callable[[str, int, int], None]
"""Called with a context's name, and the tokens that were run and are to be run in all."""


@dataclass
class Recomputed:
    """`tokens` were run and `pages` and `tails` compared. `adopted` are imported contexts that were taken over, and
    `repaired` those whose pages were replaced; `complete` is off when it was stopped."""

    problems: list[Problem] = field(default_factory=list)
    tokens: int = 0
    pages: int = 0
    tails: int = 0
    adopted: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    complete: bool = True


class Recomputation:
    """One call of `recompute`. `proved`: keys of nodes whose pages, and all before, came out as they are stored;
    `due`: the tokens that are to be run in all."""

    def __init__(
        self,
        store: Store,
        fingerprint: Fingerprint,
        runner: Runner,
        chunk: int,
        repair: bool,
        progress: OnRecompute | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.store, self.fingerprint, self.runner, self.chunk, self.repair = store, fingerprint, runner, chunk, repair
        self.progress, self.should_stop = progress, should_stop
        self.result = Recomputed()
        self.proved: set[bytes] = set()
        self.due = 0

    @contextlib.contextmanager
    def telling(self, context: Context) -> Iterator[None]:
        """What makes that a context cannot be run is a problem of this one."""
        try:
            yield
        except cache.CacheFull:
            raise
        except (CorruptMemory, ParameterError, cache.CacheError) as error:
            self.result.problems.append(Problem("tokens", str(error), (context.name,), lost=True))

    def stopped(self) -> bool:
        if self.should_stop is not None and self.should_stop():
            self.result.complete = False
        return not self.result.complete

    def ran(self, context: Context, tokens: int) -> None:
        self.result.tokens += tokens
        if self.progress is not None:
            self.progress(context.name, self.result.tokens, max(self.due, self.result.tokens))

    def sequence_at(self, tokens: Array, pages: list[Array], length: int) -> cache.Sequence:
        """A sequence over the first `length` tokens, a multiple of 256, with these pages."""
        if not length:
            return self.runner.new_sequence()
        layout, pages = self.runner.pool.layout, pages[: length // PAGE_TOKENS]
        return replay(self.runner.restore_sequence, self.runner.replay, layout, tokens, pages, length)


def said_of_pages(first: int, last: int) -> str:
    which = f"page {first}" if first == last else f"pages {first} to {last}"
    tokens = f"tokens {first * PAGE_TOKENS:,} to {(last + 1) * PAGE_TOKENS - 1:,}"
    return (
        f"{which} ({tokens}) is not what the network computes"
        if first == last
        else (f"{which} ({tokens}) are not what the network computes")
    )
