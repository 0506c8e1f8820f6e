"""What a system under test has to do."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from foveal.evals.material import Documents
from foveal.evals.task import Answer, Question


class Reader(Protocol):
    """A system that has a text before it."""

    def ask(self, question: Question) -> list[Answer]:
        """One answer for each cue of the completion form, or one for the chat form."""
        ...


class System(Protocol):
    """Something that reads texts and answers."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """What decides its answers besides the text and the question: results of another identity are not its own."""
        ...

    def takes(self, length: int) -> bool:
        """Whether it is asked about texts of so many tokens."""
        ...

    def reading(self, documents: Documents) -> AbstractContextManager[Reader]:
        """The text, read."""
        ...
