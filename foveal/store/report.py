"""What a check of a store finds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """What was found wrong: `what` ("page", "tail", "tokens", "source map", "record", "index", "pack", "about",
    "reserve"), where, and which `contexts` it concerns. `lost` says that nothing in the store can make it good,
    `mended` that it was made good already."""

    what: str
    where: str
    contexts: tuple[str, ...] = ()
    lost: bool = False
    mended: bool = False

    def __str__(self) -> str:
        of = f" of {', '.join(self.contexts)}" if self.contexts else ""
        end = " (lost)" if self.lost else " (mended)" if self.mended else ""
        return f"{self.what}{of}: {self.where}{end}"


@dataclass
class Report:
    """`objects` records of `nbytes` bytes were read, for `contexts` contexts. `lost` are the files that were given up
    and kept in the folder `lost`, with their bytes: no problem any more."""

    problems: list[Problem] = field(default_factory=list)
    contexts: int = 0
    objects: int = 0
    nbytes: int = 0
    lost: dict[str, int] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        return not self.problems
