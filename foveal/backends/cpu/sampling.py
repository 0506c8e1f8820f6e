"""Choosing a token from logits on the host.

The order of probabilities is total (of equals the lowest id comes first), so that a choice is a function of the logits,
the rules and one number.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from foveal import _native
from foveal.backends.interface import Choice, Rules
from foveal.errors import BadLogitsError, ParameterError
from foveal.formats import F32, Array

_NOT_NUMBERS = "the network returned logits that are not numbers (NaN); its weights or state are damaged"


@cache
def _kernels() -> _native.Runtime:
    return _native.Runtime(threads=1)


def choose(
    logits: Array, rules: Rules, u: float, allowed: Array | None = None, adjusted: Array | None = None
) -> Choice:
    """Choose a token from `logits` (fp32 [vocab]); `u`, from 0 to 1, decides where `rules.temperature` is not 0.

    `allowed` (bool [vocab]) restricts the choice. `adjusted` (fp32 [vocab]) takes the place of the logits in it.
    Log-probabilities in the result are those of `logits`, of the whole vocabulary, before temperature and filters.

    Raises `BadLogitsError` when a logit is NaN or none is finite, `ParameterError` when nothing is allowed.
    """
    logits = np.ascontiguousarray(logits, dtype=F32)
    if rules.temperature == 0 and allowed is None and adjusted is None and rules.logprobs is None:
        return _likeliest(logits)
    scores = log_softmax(logits)
    if bool(np.isnan(scores).any()):
        raise BadLogitsError(_NOT_NUMBERS)
    candidates = scores if adjusted is None else adjusted
    if allowed is not None:
        candidates = _restrict(candidates, allowed)
    if rules.temperature == 0:
        token = int(candidates.argmax())  # the first of equals
    else:
        token = _draw(candidates, rules, u)
    return Choice(token, float(scores[token]), _top(scores, rules.logprobs or 0))


def score(logits: Array, tokens: Array, count: int) -> list[Choice]:
    """What `tokens` (int64 [m]) are worth behind `logits` (fp32 [m, vocab]): the log-probability of each, bit for bit
    what choosing it would tell, with the `count` likeliest.

    Raises `BadLogitsError` when a logit is NaN or none of a row is finite.
    """
    scores = log_softmax(np.ascontiguousarray(logits, dtype=F32))
    if bool(np.isnan(scores).any()):
        raise BadLogitsError(_NOT_NUMBERS)
    found = scores[np.arange(len(tokens)), tokens].tolist()
    tops = [_top(row, count) for row in scores]
    return [Choice(token, logprob, top) for token, logprob, top in zip(tokens.tolist(), found, tops, strict=True)]


def log_softmax(logits: Array) -> Array:
    """Log-probabilities, fp32, of logits fp32 [..., vocab]; NaN where no logit is finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        exact = logits.astype(np.float64)
        exact -= exact.max(axis=-1, keepdims=True)
        exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
        return exact.astype(F32)


def _likeliest(logits: Array) -> Choice:
    """The common case, greedy without alternatives, in one pass over the vocabulary."""
    try:
        token, logprob = _native.greedy(_kernels(), logits)
    except ValueError as error:
        raise BadLogitsError(_NOT_NUMBERS) from error
    return Choice(token, logprob)


def _restrict(scores: Array, allowed: Array) -> Array:
    if allowed.dtype != np.bool_:
        raise ParameterError(f"a constraint must say True or False of each token, not {allowed.dtype}")
    allowed = allowed[: len(scores)]
    if not bool(allowed.any()):
        raise ParameterError(
            f"no token of the vocabulary (0 to {len(scores) - 1}) is allowed next; a constraint must leave at least one"
        )
    restricted = np.full_like(scores, -np.inf)
    np.copyto(restricted[: len(allowed)], scores[: len(allowed)], where=allowed)
    if bool(np.isinf(restricted).all()):  # all allowed ones are impossible for the network: they are equally bad
        restricted[: len(allowed)][allowed] = 0.0
    return restricted


def _draw(scores: Array, rules: Rules, u: float) -> int:
    """Inverse of the cumulated probability at `u`, over the tokens that pass the filters, likeliest first."""
    # The likeliest is 0 before it is divided: the smallest temperature leaves it, and makes the rest impossible.
    with np.errstate(over="ignore"):
        shifted = (scores.astype(np.float64) - np.float64(scores.max())) / rules.temperature
    likely = np.exp(shifted)
    likely /= likely.sum()
    tokens = np.argsort(-likely, kind="stable")  # stable: lowest id first among equals
    ordered = likely[tokens]
    keep = ordered > 0
    if rules.top_k:
        keep[rules.top_k :] = False
    if rules.top_p < 1:
        kept = np.where(keep, ordered, 0)
        before = kept.cumsum() - kept
        keep &= before < rules.top_p * kept.sum()
    keep &= ordered >= rules.min_p * ordered[0]
    keep[0] = True
    cumulated = np.where(keep, ordered, 0).cumsum()
    choice = int(np.searchsorted(cumulated, u * cumulated[-1], side="right"))
    return int(tokens[min(choice, int(np.flatnonzero(keep)[-1]))])


def _top(scores: Array, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest, best first; of equals the lowest id first."""
    if not count:
        return ()
    if count == 1:
        best = int(scores.argmax())
        return ((best, float(scores[best])),)
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    near = np.flatnonzero(scores >= least)  # ascending, so that the stable sort keeps the lowest of equals first
    tokens = near[np.argsort(-scores[near], kind="stable")[:count]]
    return tuple(zip(tokens.tolist(), scores[tokens].tolist(), strict=True))
