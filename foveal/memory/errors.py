"""What can go wrong with a memory. Every message says what was wrong and what to do about it."""

from __future__ import annotations


class StoreError(Exception):
    """A memory could not be found, read or written. Nothing was changed, and nothing half loaded remains."""


class MemoryNotFound(StoreError):
    """There is no memory of that name (or at that path)."""


class InvalidName(StoreError):
    """A memory's name must be plain: no path, no leading dot, at most 100 letters, digits, ``.``, ``_`` and ``-``."""


class CorruptMemory(StoreError):
    """A file of a memory is missing, truncated or altered. `file` names it."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"memory file {file}: {problem}; the memory is damaged, delete it and read its source again")
        self.file = file


class FingerprintMismatch(StoreError):
    """The memory was made by something else than this engine. `differing` names the parts, such as "weights"."""

    def __init__(self, differing: tuple[str, ...]) -> None:
        super().__init__(
            f"the memory was made with a different {', '.join(differing)}; open the model it was made with, or read "
            "its source again with this one"
        )
        self.differing = differing


class ReadError(StoreError):
    """A source gave nothing to read, or cannot be read on from where it was left."""
