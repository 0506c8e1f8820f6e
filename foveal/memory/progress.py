"""How far a read is, what it came to, and who looks on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from foveal.cache.replay import OnReplay
from foveal.sources import Skipped


@dataclass(frozen=True)
class Progress:
    """How far reading is. While files are being tokenised `exact` is False and `tokens_total` an estimate; speed and
    `seconds_left` are of the last chunks, None before the first. `again`: the tokens are those of a window of the past
    that is run again, before any that are new."""

    tokens_done: int
    tokens_total: int
    exact: bool
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    file: str = ""
    again: bool = False


OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class Watch:
    """Who looks on while a memory is read into: `progress` is told after every chunk, `should_stop` asked before; every
    `save_every` seconds what was read so far is saved where the memory lies (None: it is not)."""

    progress: OnProgress | None = None
    should_stop: ShouldStop | None = None
    save_every: float | None = None


@dataclass(frozen=True)
class ReadTotals:
    """What a source holds and how far it was read. `tokens` are those of the whole source (and of earlier versions that
    the memory has), `text_bytes` its UTF-8 size, `seconds` the time spent running the network on it, `run` the tokens
    that it ran in that time; `complete` says that all tokens were read."""

    files: int = 0
    text_bytes: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: tuple[Skipped, ...] = ()
    complete: bool = False
    run: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of reading so far; None before anything was run."""
        return self.run / self.seconds if self.run and self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"skipped": [[skip.path, skip.reason] for skip in self.skipped]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "skipped": tuple(Skipped(path, reason) for path, reason in data["skipped"])})


@dataclass(frozen=True)
class Resumed:
    """What going on found: `kept` tokens of the earlier read were still right; `changed` are the files (edited or gone)
    because of which the rest was read anew."""

    kept: int
    changed: tuple[str, ...] = ()


def telling_of_a_window(progress: OnProgress | None) -> OnReplay | None:
    """What tells `progress` of a replay."""
    if progress is None:
        return None
    return lambda done, total: progress(Progress(done, total, exact=True, again=True))


class Speed:
    """Tokens per second over the last chunks."""

    def __init__(self, chunks: int = 16) -> None:
        self._marks: deque[tuple[float, int]] = deque([(time.perf_counter(), 0)], maxlen=chunks + 1)

    def after(self, tokens: int) -> float:
        self._marks.append((time.perf_counter(), self._marks[-1][1] + tokens))
        (begin, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(now - begin, 1e-9)
