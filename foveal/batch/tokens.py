"""Token ids as callers hand them over, made sure of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foveal.errors import ParameterError

IdArray = npt.NDArray[np.int64]
Tokens = Sequence[int] | npt.NDArray[np.signedinteger[Any]]
"""Token ids as they are handed over."""


def token_ids(tokens: Tokens, vocabulary: int) -> IdArray:
    """`tokens` as int64 [n]: Python's integers, numpy's, or an array of either.

    Raises `ParameterError` naming the first that is no integer, or is not from 0 to `vocabulary` - 1.
    """
    if isinstance(tokens, np.ndarray) and tokens.dtype.kind == "i" and tokens.ndim == 1:
        return _known(tokens.astype(np.int64), tokens, vocabulary)
    given = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        raise ParameterError(f"{type(tokens).__name__} is no sequence of token ids")
    kinds = set(map(type, given))
    if any(not issubclass(kind, int | np.integer) or issubclass(kind, bool) for kind in kinds):
        place, token = next((p, t) for p, t in enumerate(given) if not _is_integer(t))
        raise ParameterError(f"token {token!r} at place {place} is no token id; it must be an integer")
    try:
        ids = np.array(given, dtype=np.int64)
    except OverflowError:
        ids = np.array([token if 0 <= token < vocabulary else -1 for token in given], dtype=np.int64)
    return _known(ids, given, vocabulary)


def _known(ids: IdArray, given: Tokens, vocabulary: int) -> IdArray:
    if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary):
        place = int(np.flatnonzero((ids < 0) | (ids >= vocabulary))[0])
        raise ParameterError(f"token {given[place]} at place {place} is not in the vocabulary (0 to {vocabulary - 1})")
    return ids


def _is_integer(token: object) -> bool:
    return isinstance(token, int | np.integer) and not isinstance(token, bool)
