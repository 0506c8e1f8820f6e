"""The one error of this room."""

from __future__ import annotations

from collections.abc import Sequence

from foveal.errors import FovealError

_SHOWN = 20


class CheckpointError(FovealError, ValueError):
    """A checkpoint cannot be read or written. The message lists everything that is wrong, up to a number of lines.

    `problems` holds the whole list.
    """

    code = "damaged"

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = [f"  - {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"  - and {len(self.problems) - _SHOWN} more")
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([f"{what}: {count}", *lines]))
