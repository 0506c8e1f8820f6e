"""Are pages what the network computes? A checksum says that bytes are those that were written, not that they are right.

The network runs over the tokens of a context from the first on, and every page and tail that the store has is compared
with what comes out, bit for bit. An imported context of which all is equal is taken over: from then on its pages are as
good as if they had been computed here. A sample runs single pages only, each from the pages before it: it says that a
page follows from those, and nothing about them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from foveal import cache
from foveal.cache.replay import replay_start
from foveal.checkpoint.identity import Fingerprint
from foveal.config import PAGE_TOKENS
from foveal.store import contexts
from foveal.store.arrays import array_bytes
from foveal.store.context_view import ContextView
from foveal.store.errors import StoreError
from foveal.store.loading import Runner
from foveal.store.objects import Context
from foveal.store.recomputation import OnRecompute, Recomputation, Recomputed, said_of_pages
from foveal.store.recompute_context import ContextRun
from foveal.store.report import Problem
from foveal.store.saving import let_go_of
from foveal.store.store import Store


def recompute(
    store: Store,
    names: Iterable[str],
    fingerprint: Fingerprint,
    runner: Runner,
    *,
    chunk: int,
    sample: int | None = None,
    repair: bool = False,
    rng: random.Random | None = None,
    progress: OnRecompute | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Recomputed:
    """Compute the contexts called `names` again, or `sample` of their pages, and compare.

    `repair` puts what was computed in the place of what differs. `chunk`: the tokens that the runner takes at once;
    `should_stop` is asked in between. Raises `MemoryNotFound`, `FingerprintMismatch`, `CacheFull`, and `StoreError` for
    a backend whose last bits depend on how the tokens are cut.
    """
    if runner.grain != 1:
        raise StoreError(
            "on this backend the last bits of a page depend on how its tokens were cut, so nothing can be told from "
            "bytes that differ; use the native backend"
        )
    let_go_of(store, runner.pool)
    found = [store.context(name) for name in names]
    for context in found:
        contexts.check_fingerprint(context, fingerprint)
    run = Recomputation(store, fingerprint, runner, chunk, repair, progress, should_stop)
    return _Recomputing(run).run(found, sample, rng)


class _Recomputing:
    """One call of `recompute`."""

    def __init__(self, run: Recomputation) -> None:
        self.call, self.store, self.runner = run, run.store, run.runner

    def run(self, found: list[Context], sample: int | None, rng: random.Random | None) -> Recomputed:
        if sample is not None:
            found = self._sample(found, sample, rng or random.SystemRandom())
            if not self.call.repair:
                return self.call.result
        self.call.due = self.call.result.tokens + sum(context.length for context in found)
        for context in found:
            with self.call.telling(context):
                ContextRun(self.call, context).run()
            if not self.call.result.complete:
                break
        return self.call.result

    def _sample(self, found: list[Context], count: int, rng: random.Random) -> list[Context]:
        """Compute `count` pages again, each from those before it; returns the contexts with one that differs."""
        pages: dict[bytes, tuple[Context, int]] = {}
        for context in found:
            with self.call.telling(context):
                chain = self._view(context).chain
                present = next((n for n, page in enumerate(chain.pages) if page is None), len(chain.pages))
                pages |= {key: (context, number) for number, key in enumerate(chain.keys[:present])}
        chosen = rng.sample(sorted(pages), min(count, len(pages)))
        window = replay_window(self.runner.pool.layout)
        self.call.due = sum(min(pages[key][1] * PAGE_TOKENS, window) + PAGE_TOKENS for key in chosen)
        wrong: dict[str, Context] = {}
        for context, number in sorted((pages[key] for key in chosen), key=lambda pair: (pair[0].name, pair[1])):
            if self.call.stopped():
                break
            with self.call.telling(context):
                if not self._page_is_right(context, number):
                    self.call.result.problems.append(Problem("page", said_of_pages(number, number), (context.name,)))
                    wrong[context.name] = context
        return list(wrong.values())

    def _page_is_right(self, context: Context, number: int) -> bool:
        view, start = self._view(context), number * PAGE_TOKENS
        pages = view.first_pages(self.runner.pool, number + 1)
        if len(pages) <= number:
            return True  # it was evicted, or found damaged, just now: nothing to compare with
        with self.call.sequence_at(view.tokens, pages, start) as sequence:
            before = sequence.length - min(start, replay_window(self.runner.pool.layout))
            self.runner.recompute(sequence, view.tokens[start : start + PAGE_TOKENS].tolist())
            self.call.result.pages += 1
            self.call.ran(context, sequence.length - before)
            return array_bytes(sequence.pages[number].data) == array_bytes(pages[number])

    def _view(self, context: Context) -> ContextView:
        return ContextView(self.store, context, self.call.fingerprint.digest)


def replay_window(layout: cache.CacheLayout) -> int:
    """Tokens that are run again to go on behind a page."""
    far = 1 << 40
    return far - replay_start(layout.config, far)
