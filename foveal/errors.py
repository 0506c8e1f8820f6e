"""The root of everything that Foveal raises on purpose, and what each kind of it is to a caller.

An error class says what kind it is by its `code`. Whoever passes errors on (the command line, the server) derives its
answer from the code alone, so a new error class needs no new case anywhere.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # the command line imports this before it has its signal handlers: nothing that costs time
    from typing import ClassVar

# code -> HTTP status. The names are part of the interface: the JSON of errors carries them.
STATUS = {
    "invalid_request": 400,  # an argument, a parameter, a name or a text is wrong; the same again fails again
    "context_length_exceeded": 400,  # more tokens than the model was made for
    "unauthorized": 401,  # no key, or one that is not known
    "forbidden": 403,  # the key is known, and may not do this
    "not_found": 404,  # no such memory, model or file
    "conflict": 409,  # somebody else has changed it meanwhile, or it belongs to something else
    "too_large": 413,  # more bytes than are taken in
    "rate_limited": 429,  # the caller has as much in work as it may; later it works
    "damaged": 500,  # bytes were read and found wrong: a store, an export, a checkpoint
    "failed": 500,  # the work could not be done, for none of the other reasons
    "unsupported": 501,  # sound, but this version or this installation cannot do it
    "unavailable": 503,  # the system refuses just now; it works again when the cause is gone
    "busy": 503,  # another process has it; try again
    "full": 503,  # no room: pages of the cache, memory, disk
    "cancelled": 499,  # the caller left, or the engine was closed
}


class FovealError(Exception):
    """Anything that Foveal raises on purpose. The message says what was wrong and what to do about it.

    Every subclass also derives from Python's own exception of that kind, where there is one (`ValueError` ...).
    """

    code: ClassVar[str] = "failed"
    """What kind of error this is, a key of `STATUS`."""

    @property
    def status(self) -> int:
        """The HTTP status that answers a request which ended so."""
        return STATUS[self.code]

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ended so (docs/cli.md)."""
        return 1


class ParameterError(FovealError, ValueError):
    """A sampling parameter or a prompt is out of range; the message names it and the allowed range."""

    code = "invalid_request"


class ContextLengthError(ParameterError):
    """More tokens than the model's context holds; the message names both numbers."""

    code = "context_length_exceeded"


class NotFiniteError(FovealError, RuntimeError):
    """Hidden states are no finite numbers; the message says from where on. No state has advanced."""

    code = "damaged"

    def __init__(self, where: str) -> None:
        super().__init__(
            f"the network's hidden states are not finite (NaN or infinite) from {where} on: its weights are damaged, "
            "or too large for its arithmetic; fetch the checkpoint again. None of these tokens were kept"
        )


class BadLogitsError(FovealError, RuntimeError):
    """The network returned logits that are not numbers."""

    code = "damaged"


class MissingExtra(FovealError, ImportError):
    """What was asked for needs a package that this installation does not have; the message says how to get it."""

    code = "unsupported"


def need_torch(what: str) -> None:
    """Raises `MissingExtra`, saying that `what` needs torch, where it is not installed."""
    if not installed("torch"):
        raise MissingExtra(f"{what} needs torch, which is not installed: pip install 'foveal[torch]'")


def installed(package: str) -> bool:
    """Whether `package` is; nothing is imported."""
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except ImportError:
        return False
