"""What can go wrong in the cache. Every message says what was wrong and what to do about it."""

from __future__ import annotations

from foveal.errors import FovealError


class CacheError(FovealError, RuntimeError):
    """A step, page or sequence was used against the contract in `foveal.cache`."""


class CacheFull(CacheError):
    """The pool's page limit is reached. Nothing was changed: free sequences, or raise the limit, and try again."""

    code = "full"


class SequenceFreed(CacheError):
    """The sequence was freed and holds nothing any more."""


class ImageError(CacheError):
    """A sequence image does not fit: wrong sizes, names or dtypes, as after a change of model or of cache format."""

    code = "damaged"
