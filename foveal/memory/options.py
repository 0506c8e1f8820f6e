"""What a memory is read from, and how: its source, the filters, and how many tails are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from foveal import cache
from foveal.config import PAGE_TOKENS
from foveal.sources import is_stream, plain_path
from foveal.store.errors import ReadError

TailEvery = int | Literal["auto", "full", "none"]
"""Tokens between two tails that are kept: how far one goes back, at most, when files change or a fork begins in the
middle. "auto": tails cost at most a tenth of the pages; "full": one at the end of every chunk; "none": not even at the
end, the window is run again."""

ELSEWHERE = "the memory was imported, and its source may be anywhere; `foveal sync NAME --source PATH` says where it is"


@dataclass(frozen=True)
class SourceOptions:
    """What to read and how; see `foveal.sources.read_source`. `source` is a path, or ``-`` for standard input; of
    several `paths` it names them all, for people.

    `elsewhere`: the path is another machine's (the memory was imported), and is never looked at.
    """

    source: str
    max_file_bytes: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    use_gitignore: bool = True
    elsewhere: bool = False
    paths: tuple[str, ...] = ()
    """What was named, if it was more than one path."""

    @property
    def named(self) -> tuple[str, ...]:
        """All paths, one or several."""
        return self.paths or (self.source,)

    @property
    def once_only(self) -> bool:
        """Whether (a part of) the source can be read once only, and never be compared again: a stream."""
        return any(map(is_stream, self.named))

    def at(self, paths: Sequence[str | Path]) -> SourceOptions:
        """The same, of a source that lies at `paths`; these are made absolute."""
        places = [plain_path(str(path)) for path in paths]
        several = tuple(places) if len(places) > 1 else ()
        return replace(self, source=", ".join(places), paths=several, elsewhere=False)

    def to_dict(self) -> dict[str, Any]:
        lists = {"include": list(self.include), "exclude": list(self.exclude), "paths": list(self.paths)}
        said = asdict(self) | lists
        return {key: value for key, value in said.items() if value or key not in ("paths", "elsewhere")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, **{key: tuple(data.get(key, ())) for key in ("include", "exclude", "paths")}})


def source_options(
    source: str | Path | Sequence[str | Path],
    max_file_bytes: int | None,
    include: Sequence[str],
    exclude: Sequence[str],
    use_gitignore: bool,
) -> SourceOptions:
    """Options as they are recorded; paths are made absolute so that going on works from another folder."""
    options = SourceOptions("", max_file_bytes, tuple(include), tuple(exclude), use_gitignore)
    return options.at([source] if isinstance(source, str | Path) else source)


def tail_distance(policy: TailEvery, layout: cache.CacheLayout, chunk: int) -> int | None:
    """What `foveal.cache.Sequence` takes as `tail_every`. Raises `ReadError` for what is no policy."""
    if policy == "none":
        return None
    if policy == "full":
        return chunk
    if policy == "auto":
        pages = -(-10 * layout.tail_bytes(PAGE_TOKENS * 64) // max(layout.page_bytes, 1))
        return -(-pages * PAGE_TOKENS // chunk) * chunk
    if not isinstance(policy, int) or policy < 1:
        raise ReadError(f"tails every {policy!r}: give a number of tokens, or auto, full or none")
    return policy
