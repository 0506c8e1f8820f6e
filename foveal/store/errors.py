"""What can go wrong with a memory. Every message says what was wrong and what to do about it."""

from __future__ import annotations

from pathlib import Path

from foveal.errors import FovealError


class StoreError(FovealError):
    """A memory could not be found, read or written. Nothing was changed, and nothing half loaded remains."""


class MemoryNotFound(StoreError):
    """There is no memory of that name (or at that path)."""

    code = "not_found"


class InvalidName(StoreError):
    """A memory's name must be plain: no path, no leading dot, at most 100 letters, digits, ``.``, ``_`` and ``-``."""

    code = "invalid_request"


class NameExists(StoreError):
    """There is a memory of that name already."""

    code = "conflict"

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a memory {name!r} already; choose another name, or delete it first")


class NoSuchToken(StoreError):
    """A memory has not so many tokens."""

    code = "invalid_request"


class CorruptMemory(StoreError):
    """Something of a memory that cannot be computed again is damaged in both its copies. `what` names it."""

    code = "damaged"

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"memory {what}: {problem}; the memory is damaged, delete it and read its source again")
        self.what = what


class FingerprintMismatch(StoreError):
    """The memory was made by something else than this engine. `differing` names the parts, such as "weights"."""

    code = "conflict"

    def __init__(self, differing: tuple[str, ...]) -> None:
        super().__init__(
            f"the memory was made with another model (different: {', '.join(differing)}); open that one, or read its "
            "source again with this one"
        )
        self.differing = differing


class ReadError(StoreError):
    """A source gave nothing to read, or cannot be read on from where it was left."""

    code = "invalid_request"


class StoreUnavailable(StoreError):
    """The system refuses to open, list, map or read something of the store just now. Nothing is known to be damaged,
    and nothing was changed: it works again when the cause is gone."""

    code = "unavailable"

    def __init__(self, path: Path, error: Exception) -> None:
        said = getattr(error, "strerror", None) or error
        super().__init__(f"cannot read {path} just now ({said}); nothing was changed, mend that and try again")
        self.path = path


class StoreBusy(StoreError):
    """Another process is writing to the store, and went on for longer than one was willing to wait."""

    code = "busy"


class Conflict(StoreError):
    """Somebody else has appended to a shared context meanwhile. `head` is where it is now."""

    code = "conflict"

    def __init__(self, name: str, head: str) -> None:
        super().__init__(
            f"{name} has changed meanwhile; its head is {head or 'gone'}: look at what is new, and try again"
        )
        self.head = head


class FormatError(StoreError):
    """The store has a format this version does not read, or needs a key it was not given."""

    code = "unsupported"


class IndexDamaged(StoreError):
    """The store's index is not sound. It holds nothing of its own and is made again from the packs."""

    code = "damaged"

    def __init__(self, problem: str) -> None:
        super().__init__(f"the store's index is damaged ({problem}); `foveal verify` makes it again from the packs")


class IndexBehind(IndexDamaged):
    """The packs hold changes that the index has not: their writer died before entering them, or the log is gone."""


class IndexDoubted(IndexDamaged):
    """The index does not lead to what is looked for, which may never have been there: it is made again to be sure."""


class IndexOutdated(IndexDamaged):
    """The index has the form that another version of Foveal writes. Nothing is wrong with it."""
