"""An engine as the store uses it: what it runs was run before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveal import cache
from foveal.batch import Kind, Priority
from foveal.batch.tokens import Tokens

if TYPE_CHECKING:
    from foveal.engine.sequences import SequenceEngine


class RunningAgain:
    """`foveal.store.loading.Runner`, on an engine. Windows are replayed with the priority `replay`, since somebody
    waits for them as a rule and they are short; lost pages, which may be all of a context, are computed again with
    `recompute`."""

    def __init__(
        self,
        engine: SequenceEngine,
        *,
        replay: Priority = Priority.INTERACTIVE,
        recompute: Priority = Priority.BACKGROUND,
    ) -> None:
        self._engine, self._replay, self._recompute = engine, replay, recompute

    @property
    def pool(self) -> cache.PagePool:
        return self._engine.pool

    @property
    def grain(self) -> int:
        return self._engine.grain

    def new_sequence(self, *, tail_every: int | None = None) -> cache.Sequence:
        return self._engine.new_sequence(tail_every=tail_every)

    def restore_sequence(self, image: cache.SequenceImage, *, tail_every: int | None = None) -> cache.Sequence:
        return self._engine.restore_sequence(image, tail_every=tail_every)

    def replay(self, sequence: cache.Sequence, tokens: Tokens) -> int:
        """Run tokens of which only the window is wanted; returns how many."""
        return self._engine.prefill(sequence, tokens, kind=Kind.REPLAY, priority=self._replay)

    def recompute(self, sequence: cache.Sequence, tokens: Tokens) -> int:
        """Run tokens for their pages; returns how many."""
        return self._engine.prefill(sequence, tokens, kind=Kind.RECOMPUTE, priority=self._recompute)
