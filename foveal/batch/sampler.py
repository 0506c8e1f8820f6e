"""Choosing a token from logits, for a request.

Randomness is counted, not streamed. The k-th token of a request uses a number derived from (seed, k) alone, so that a
result does not depend on the batch, on the steps' budgets or on any generator's state, and a request can be replayed
from its seed.
"""

from __future__ import annotations

import hashlib

from foveal.backends.cpu.sampling import choose
from foveal.backends.cpu.sampling import score as scores_of
from foveal.batch.request import Sampled, SamplingParams
from foveal.errors import BadLogitsError
from foveal.formats import Array


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits, a function of `seed` (64 bits, signed) and `index` (>= 0)."""
    key = seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")
    digest = hashlib.blake2b(key, digest_size=8, person=b"foveal sampling").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def sample(
    logits: Array,
    params: SamplingParams,
    *,
    seed: int,
    index: int,
    allowed: Array | None = None,
    adjusted: Array | None = None,
) -> Sampled:
    """Choose token number `index` of a request from `logits` (fp32 [vocab]).

    `allowed` (bool [vocab]) restricts the choice, and `adjusted` (fp32 [vocab]) takes the place of the logits in it
    (`foveal.batch.penalties`). Log-probabilities in the result are those of `logits`, of the whole vocabulary, before
    temperature and filters.

    Raises `BadLogitsError` when a logit is NaN or none is finite, `ParameterError` when nothing is allowed.
    """
    chosen = choose(logits, params, uniform(seed, index), allowed, adjusted)
    return Sampled(chosen.token, chosen.logprob, chosen.top)


def score(logits: Array, tokens: Array, alternatives: int) -> list[Sampled]:
    """What given `tokens` (int64 [m]) are worth behind `logits` (fp32 [m, vocab]): bit for bit what `sample` tells of
    them when they are chosen, with so many likeliest alternatives. Raises `BadLogitsError`."""
    return [Sampled(each.token, each.logprob, each.top) for each in scores_of(logits, tokens, alternatives)]


__all__ = ["BadLogitsError", "sample", "score", "uniform"]
