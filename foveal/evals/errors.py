"""What can be wrong with an evaluation. Every message says what was wrong and what to do about it."""

from __future__ import annotations

from foveal.errors import FovealError


class EvalError(FovealError, ValueError):
    """An evaluation was asked for that cannot be made, or what it needs is missing."""

    code = "invalid_request"


class SourceTooShort(EvalError):
    """The source does not hold a text as long as asked."""

    code = "invalid_request"


class EndpointError(EvalError):
    """The endpoint could not be reached, refused a request, or answered with something else than the protocol says."""
