"""Reading a source into a sequence, so that it can stop anywhere and go on.

Tokens decide. Going on from an earlier read tokenises the source again and compares tokens; what
is equal is kept, and from the first difference on (rounded down to a cut of the scheduler) it is read anew. So a read
that was interrupted, resumed, or resumed over changed files ends in the same bits as reading the same tokens at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from foveal import cache
from foveal.api import Engine
from foveal.cache.replay import OnReplay
from foveal.config import PAGE_TOKENS
from foveal.memory.errors import ReadError
from foveal.sources import (
    Document,
    Skipped,
    SourceMap,
    TokenizedDocument,
    is_stream,
    plain_path,
    read_source,
    tokenize_source,
)
from foveal.text import Tokenizer

TailEvery = int | Literal["auto", "full", "none"]
"""Tokens between two tails that are kept: how far one goes back, at most, when files change or a fork begins in the
middle. "auto": tails cost at most a tenth of the pages; "full": one at the end of every chunk; "none": not even at the
end, the window is run again."""

IntArray = npt.NDArray[np.int32]

ELSEWHERE = "the memory was imported, and its source may be anywhere; `foveal sync NAME --source PATH` says where it is"


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


@dataclass(frozen=True)
class Reading:
    """A file that was not read as plain UTF-8: in which encoding, and how many replacement characters it holds."""

    path: str
    encoding: str
    replaced: int


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


@dataclass(frozen=True)
class Resumed:
    """What going on found: `kept` tokens of the earlier read were still right; `changed` are the files (edited or gone)
    because of which the rest was read anew."""

    kept: int
    changed: tuple[str, ...] = ()


OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


@dataclass
class TokenizedSource:
    """A tokenised source: its documents in the order in which they would be read if nothing had been yet."""

    documents: list[TokenizedDocument] = field(default_factory=list)
    text_bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    encodings: list[Reading] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    """What the person should hear of how the files were found."""


@dataclass(frozen=True)
class Target:
    """What a memory shall hold: ids int32 [n], and where each token stands."""

    ids: IntArray
    places: SourceMap


def gather(
    options: SourceOptions, tokenizer: Tokenizer, *, stdin: BinaryIO | None = None, progress: OnProgress | None = None
) -> TokenizedSource:
    """Tokenise everything. Raises `foveal.sources.SourceError`, or `ReadError` when there is nothing to read, or the
    source is elsewhere."""
    if options.elsewhere:
        raise ReadError(ELSEWHERE)
    source = read_source(
        options.named,
        max_file_bytes=options.max_file_bytes,
        include=options.include,
        exclude=options.exclude,
        use_gitignore=options.use_gitignore,
        stdin=stdin,
    )
    expected_bytes = source.estimate().bytes
    found, tokens = TokenizedSource(notes=source.notes), 0

    def count(document: Document) -> None:
        if document.encoding != "utf-8" or document.replaced:
            found.encodings.append(Reading(document.path, document.encoding, document.replaced))
        found.text_bytes += len(document.text.encode("utf-8", "surrogatepass"))

    for document in tokenize_source(source, tokenizer, on_skip=found.skipped.append, on_document=count):
        found.documents.append(document)
        tokens += len(document.ids)
        if progress is not None:
            share = found.text_bytes / max(expected_bytes, found.text_bytes, 1)
            progress(Progress(0, round(tokens / max(share, 1e-9)), exact=False, file=document.path))
    if not found.documents:
        reasons = "; ".join(f"{skip.path}: {skip.reason}" for skip in found.skipped[:3])
        raise ReadError(f"there is nothing to read in {options.source}{f' (skipped {reasons})' if reasons else ''}")
    return found


def first_difference(one: IntArray, other: IntArray) -> int:
    """How many tokens two texts share at their beginning."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size


def going_back(past: IntArray, ids: IntArray, grain: int) -> tuple[int, int]:
    """The tokens that `past` and `ids` share, and where to go back to for `ids`: there, or at the cut before."""
    common = first_difference(past, ids)
    ends_here = common == len(past) == len(ids)
    return common, common if ends_here else common - common % grain


def telling_of_a_window(progress: OnProgress | None) -> OnReplay | None:
    """What tells `progress` of a replay."""
    if progress is None:
        return None
    return lambda done, total: progress(Progress(done, total, exact=True, again=True))


def go_back(
    engine: Engine, sequence: cache.Sequence, ids: IntArray, *, progress: OnProgress | None = None
) -> tuple[cache.Sequence, int]:
    """`sequence`, or one in its place, cut to what it shares with `ids`, at a cut of the engine; and how many tokens
    they share.

    It may end up shorter than that, at an earlier tail: reading `ids` on from its length replays the rest.
    """
    common, cut = going_back(sequence.tokens.numpy(), ids, engine.grain)
    if cut < sequence.length:
        if (again := engine.replay(sequence, cut, progress=telling_of_a_window(progress))) is not None:
            sequence.free()
            return again, common
        sequence.truncate(cut)
    return sequence, common


def run_tokens(
    engine: Engine,
    sequence: cache.Sequence,
    target: Target,
    *,
    progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> None:
    """Run `target.ids` into `sequence` from its length on, until the end, or `should_stop` says so between chunks."""
    total, chunk = len(target.ids), engine.batch.scheduler.chunk
    speed = _Speed()
    documents = target.places.documents
    ends = [end for _, _, end in documents]
    while (start := sequence.length) < total and not (should_stop is not None and should_stop()):
        if engine.grain > 1 and start and total - start < chunk - start % chunk:
            sequence.keep_tail()  # what is read later goes on from a cut, and so from here
        engine.batch.prefill(sequence, target.ids[start : start + chunk].tolist())
        if progress is not None:
            rate = speed.after(sequence.length - start)
            here = documents[min(int(np.searchsorted(ends, sequence.length)), len(documents) - 1)][0]
            left = (total - sequence.length) / rate
            progress(Progress(sequence.length, total, True, rate, left, here))


class _Speed:
    """Tokens per second over the last chunks."""

    def __init__(self, chunks: int = 16) -> None:
        self._marks: deque[tuple[float, int]] = deque([(time.perf_counter(), 0)], maxlen=chunks + 1)

    def after(self, tokens: int) -> float:
        self._marks.append((time.perf_counter(), self._marks[-1][1] + tokens))
        (begin, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(now - begin, 1e-9)


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
