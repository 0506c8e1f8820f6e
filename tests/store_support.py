"""An engine without a network, for the store's tests: tokens go through the exact stand-in of `cache_support`."""

from __future__ import annotations

from collections.abc import Sequence as TokenSequence

import numpy as np
from cache_support import CONFIG, EXACT, pool, random_tokens, step

from foveal import cache
from foveal.checkpoint.identity import Fingerprint
from foveal.sources import Document, SourceMap, tokenize_document

CHUNK = 512


class Runner:
    """`foveal.store.loading.Runner`, and the counters the tests look at."""

    grain = 1

    def __init__(self, weights: str = "w", format: cache.CacheFormat = EXACT) -> None:
        self.pool = pool(format)
        self.fingerprint = Fingerprint.of(CONFIG, weights=weights, tokenizer="t", numbers="n")
        self.run = 0

    def new_sequence(self, *, tail_every: int | None = None) -> cache.Sequence:
        return cache.Sequence(self.pool, tail_every=tail_every)

    def restore_sequence(self, image: cache.SequenceImage, *, tail_every: int | None = None) -> cache.Sequence:
        return cache.Sequence.restore(self.pool, image, tail_every=tail_every)

    def prefill(self, sequence: cache.Sequence, tokens: TokenSequence[int]) -> int:
        self.run += len(tokens)
        waiting = np.array(tokens, dtype=np.int64)
        while len(waiting):
            size = min(len(waiting), CHUNK - sequence.length % CHUNK)
            step(sequence, waiting[:size])
            waiting = waiting[size:]
        return len(tokens)

    replay = recompute = prefill

    def read(self, tokens: np.ndarray, *, tail_every: int | None = None) -> cache.Sequence:
        sequence = self.new_sequence(tail_every=tail_every)
        self.prefill(sequence, tokens.tolist())
        return sequence


def same(one: cache.Sequence, other: cache.Sequence) -> bool:
    """Tokens, pages and tail bit for bit."""
    a, b = one.export(), other.export()
    pairs = [(a.tokens, b.tokens), *zip(a.pages, b.pages, strict=True)]
    if a.open_page is not None and b.open_page is not None:
        pairs.append((a.open_page, b.open_page))
    pairs += [(a.tail[name], b.tail[name]) for name in a.tail]
    return a.length == b.length and a.tail.keys() == b.tail.keys() and all(np.array_equal(x, y) for x, y in pairs)


class _Letters:
    """A token for each character."""

    def encode_with_starts(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(text), np.int32), np.arange(len(text), dtype=np.int64)


def made_up_source_map(length: int) -> SourceMap:
    """A source map of so many tokens: one file in lines of five."""
    made = SourceMap()
    made.append(tokenize_document(Document("a.txt", "line\n" * (length // 5 + 1)), _Letters()))
    made.truncate(length)
    return made


__all__ = ["CHUNK", "Runner", "made_up_source_map", "random_tokens", "same"]
