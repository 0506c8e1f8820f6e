"""A step's forward passes: what the network says to each piece of a plan.

Each sequence runs in a forward pass of its own unless `batched` is set: with the reference backend the last bits of a
product depend on how many rows it has, so putting two sequences into one pass would let one change the other. A backend
whose kernels are batch-invariant sets `batched`, and the same test holds for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from foveal.batch.penalties import adjusted
from foveal.batch.request import Network, Sampled
from foveal.batch.sampler import score
from foveal.batch.scheduler import Work
from foveal.cache.contract import LayerTrace, Observer, Segment
from foveal.formats import Array

_SCORED_BYTES = 1 << 24
"""Logits that are made at once where every token is scored."""


class PassResult:
    """What a pass gave one request: `logits` [vocab] when its pending tokens are all run, or the failure."""

    __slots__ = ("adjusted", "error", "logits", "scored", "trace")

    def __init__(
        self,
        logits: Array | None = None,
        trace: tuple[LayerTrace[Array], ...] = (),
        error: Exception | None = None,
        scored: tuple[Sampled, ...] = (),
    ) -> None:
        self.logits = logits
        self.adjusted: Array | None = None
        self.scored = scored
        self.trace = trace
        self.error = error


class Passes:
    """Runs plans through `network`. `vocabulary`: ids from here on are padding."""

    def __init__(self, network: Network, *, vocabulary: int, batched: bool) -> None:
        self.network, self._vocabulary = network, vocabulary
        self.batched = batched

    def run(self, plan: list[Work]) -> list[PassResult]:
        """What each piece came to, in the plan's order. A piece that fails takes no other with it."""
        results = self._together(plan) if self.batched else [self._alone(work) for work in plan]
        self._adjust(plan, results)
        return results

    def _adjust(self, plan: list[Work], results: list[PassResult]) -> None:
        """Bias and penalties, for all who have them at once."""
        found = [
            (result, result.logits[: self._vocabulary], work.request.tally)
            for work, result in zip(plan, results, strict=True)
            if work.request.tally is not None and result.logits is not None
        ]
        if found:
            rows = adjusted([row for _, row, _ in found], [tally for _, _, tally in found])
            for (result, _, _), row in zip(found, rows, strict=True):
                result.adjusted = row

    def _alone(self, work: Work) -> PassResult:
        """One request in a pass of its own. Its failure is its own: other requests go on."""
        observer: Observer[Array] | None = Observer() if work.last and work.request.trace else None
        try:
            streams = self._forward([work], observer)
            logits = self.network.logits(streams[-1:])[0] if work.chooses else None
            scored = self._scores(work, streams)
        except Exception as error:
            return PassResult(error=error)
        return PassResult(logits, tuple(observer.traces) if observer is not None else (), scored=scored)

    def _together(self, plan: list[Work]) -> list[PassResult]:
        """All requests in one pass; for backends with batch-invariant kernels. After a failure, which leaves all states
        as they were, each runs alone, so that it hits only those it concerns."""
        if len(plan) == 1:
            return [self._alone(plan[0])]
        observer: Observer[Array] | None = (
            Observer() if any(work.last and work.request.trace for work in plan) else None
        )
        try:
            streams = self._forward(plan, observer)
            logits = self._logits(plan, streams)
        except Exception:
            return [self._alone(work) for work in plan]
        results, start = [], 0
        for place, work in enumerate(plan):
            traces = observer.traces if observer is not None and work.request.trace else ()
            result = PassResult(logits[place], tuple(trace for trace in traces if trace.segment == place))
            try:
                result.scored = self._scores(work, streams[start : start + work.count])
            except Exception as error:
                result.error = error
            results.append(result)
            start += work.count
        return results

    def _forward(self, plan: Sequence[Work], observer: Observer[Array] | None) -> Any:
        pieces = [work.request.next_tokens(work.count) for work in plan]
        ids = np.concatenate(pieces) if len(pieces) > 1 else np.array(pieces[0], dtype=np.int64)
        segments = [Segment(work.request.state, work.count) for work in plan]
        return self.network(ids, segments, observer)

    def _logits(self, plan: Sequence[Work], streams: Any) -> list[Array | None]:
        """Logits [vocab] behind each piece that chooses a token."""
        ends = [end - 1 for end in itertools.accumulate(work.count for work in plan)]
        chosen = [end for work, end in zip(plan, ends, strict=True) if work.chooses]
        if not chosen:
            return [None] * len(plan)
        rows = iter(self.network.logits(streams if len(chosen) == len(streams) else streams[chosen]))
        return [next(rows) if work.chooses else None for work in plan]

    def _scores(self, work: Work, streams: Any) -> tuple[Sampled, ...]:
        """What follows each of the tokens that were run, of a request that scores; in blocks of rows that take
        `_SCORED_BYTES` of logits."""
        request, found = work.request, list[Sampled]()
        if request.targets is None:
            return ()
        rows = max(1, _SCORED_BYTES // (4 * self.network.config.vocab_size))
        for first in range(0, work.count, rows):
            after = min(first + rows, work.count)
            logits = self.network.logits(streams[first:after])[:, : self._vocabulary]
            targets = request.targets[request.read + first : request.read + after]
            found += score(logits, targets, request.params.logprobs or 0)
        return tuple(found)
