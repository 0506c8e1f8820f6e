"""Choosing a token from logits.

What is special here: randomness is counted, not streamed. The k-th token of a request uses a number derived from
(seed, k) alone, so that a result does not depend on the batch, on the steps' budgets or on torch's generators, and a
request can be replayed from its seed.
"""

from __future__ import annotations

import hashlib
from functools import cache

import torch
from torch import Tensor

from foveal import _native
from foveal.engine.request import ParameterError, Sampled, SamplingParams


class BadLogitsError(RuntimeError):
    """The network returned logits that are not numbers."""


_NOT_NUMBERS = "the network returned logits that are not numbers (NaN); its weights or state are damaged"


@cache
def _kernels() -> _native.Runtime:
    return _native.Runtime(threads=1)


def _likeliest(logits: Tensor) -> Sampled:
    """The common case, greedy without alternatives, in one pass over the vocabulary."""
    try:
        token, logprob = _native.greedy(_kernels(), logits.float().contiguous().numpy())
    except ValueError as error:
        raise BadLogitsError(_NOT_NUMBERS) from error
    return Sampled(token, logprob)


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits, a function of `seed` (64 bits, signed) and `index` (>= 0)."""
    key = seed.to_bytes(8, "little", signed=True) + index.to_bytes(8, "little")
    digest = hashlib.blake2b(key, digest_size=8, person=b"foveal sampling").digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def sample(logits: Tensor, params: SamplingParams, *, seed: int, index: int, allowed: Tensor | None = None) -> Sampled:
    """Choose token number `index` of a request from `logits` (fp32 [vocab]).

    `allowed` (int64 [k]) restricts the choice. Log-probabilities in the result are those of the whole vocabulary,
    before temperature and filters.

    Raises `BadLogitsError` when a logit is NaN or none is finite, `ParameterError` when `allowed` is empty.
    """
    if params.temperature == 0 and allowed is None and not params.logprobs:
        return _likeliest(logits)
    scores = torch.log_softmax(logits.float(), dim=-1)
    if bool(scores.isnan().any()):
        raise BadLogitsError(_NOT_NUMBERS)
    candidates = scores if allowed is None else _restrict(scores, allowed)
    if params.temperature == 0:
        token = int((candidates == candidates.max()).nonzero()[0])
    else:
        token = _draw(candidates, params, uniform(seed, index))
    return Sampled(token, float(scores[token]), _top(scores, params.logprobs))


def _restrict(scores: Tensor, allowed: Tensor) -> Tensor:
    if len(allowed) == 0:
        raise ParameterError("no token is allowed next; a constraint must always leave at least one")
    allowed = allowed[(allowed >= 0) & (allowed < len(scores))]
    if len(allowed) == 0:
        raise ParameterError(f"a constraint allows no id of the vocabulary (0 to {len(scores) - 1})")
    restricted = torch.full_like(scores, float("-inf"))
    restricted[allowed] = scores[allowed]
    if bool(restricted.isinf().all()):  # all allowed ones are impossible for the network: they are equally bad
        restricted[allowed] = 0.0
    return restricted


def _draw(scores: Tensor, params: SamplingParams, u: float) -> int:
    """Inverse of the cumulated probability at `u`, over the tokens that pass the filters, likeliest first."""
    # The likeliest is 0 before it is divided: the smallest temperature leaves it, and makes the rest impossible.
    probabilities = torch.softmax((scores.double() - scores.max()) / params.temperature, dim=-1)
    ordered, tokens = torch.sort(probabilities, descending=True, stable=True)  # stable: lowest id first among equals
    keep = ordered > 0
    if params.top_k:
        keep[params.top_k :] = False
    if params.top_p < 1:
        kept = torch.where(keep, ordered, 0)
        before = kept.cumsum(0) - kept
        keep &= before < params.top_p * kept.sum()
    keep &= ordered >= params.min_p * ordered[0]
    keep[0] = True
    cumulated = torch.where(keep, ordered, 0).cumsum(0)
    place = int(torch.searchsorted(cumulated, u * cumulated[-1], right=True))
    return int(tokens[min(place, int(keep.nonzero()[-1]))])


def _top(scores: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    ordered, tokens = torch.sort(scores, descending=True, stable=True)
    return tuple(zip(tokens[:count].tolist(), ordered[:count].tolist(), strict=True))
