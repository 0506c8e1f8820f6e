"""Answers of the memories' API, as /openapi.json tells of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foveal.server.bodies import Json, Open
from foveal.server.openai.answer_schema import CitationAnswer


class ReadingAnswer(Open):
    """How far a read is that is in work here just now."""

    tokens_done: int
    """Tokens that were read."""
    tokens_total: int
    """Tokens of the source: an estimate until all files are known, 0 before there is one."""
    tokens_per_second: float | None
    """The speed of the last chunks; null before the first."""
    seconds_left: float | None
    """About how long it will take; null before the first chunk."""


class MemoryAnswer(Open):
    """A memory."""

    object: Literal["memory"]
    """Always `memory`."""
    name: str
    """What it is called."""
    model: str | None
    """The model that has read it. Null where that is not known, see `problem`."""
    tokens: int
    """Tokens that it holds."""
    complete: bool
    """Whether its source was read to the end."""
    source_tokens: int | None = None
    """Tokens of its whole source."""
    files: int | None = None
    """Files of its source."""
    text_bytes: int | None = None
    """Bytes of its source, in UTF-8."""
    source: list[str] | None = None
    """What it was read from, without the folders above. Empty: texts that were sent."""
    created: str | None = None
    """When it was first saved, in ISO 8601, UTC."""
    saved: str | None = None
    """When it was last saved, in ISO 8601, UTC."""
    parent: str | None = None
    """The memory that it was forked from, where it was."""
    forked_at: int | None = None
    """Tokens of the parent that it begins with, where it was forked."""
    pinned: bool | None = None
    """Whether it is kept when the store makes room (`foveal pin`)."""
    imported: bool | None = None
    """Whether it came from a file, and its pages were not computed again yet."""
    problem: str | None
    """Why it cannot be used; null where it can."""
    reading: ReadingAnswer | None = None
    """How far it is, while it is being read here."""


class ChangesMade(Open):
    """What a sync found."""

    changed: list[str]
    """Paths of files that were edited."""
    new: list[str]
    """Paths of files that were not there before."""
    removed: list[str]
    """Paths of files that are gone, or left out now."""


class SyncedAnswer(MemoryAnswer):
    """A memory that was brought up to date."""

    changes: ChangesMade
    """What was different from its files."""


class MemoriesAnswer(Open):
    """All memories."""

    object: Literal["list"]
    """Always `list`."""
    data: list[MemoryAnswer]
    """Those that the key may see, with those that are being read for the first time at the end."""


class DeletedAnswer(Open):
    """A memory that was deleted."""

    object: Literal["memory"]
    """Always `memory`."""
    name: str
    """What it was called."""
    deleted: Literal[True]
    """Always true."""


class FileAnswer(Open):
    """The tokens of a file."""

    path: str
    """The file, as citations call it."""
    first: int
    """Its first token, from the beginning of the memory."""
    after: int
    """The first token behind it."""
    outdated: bool
    """Whether it is an earlier version, or one of a file that is gone."""


class MapAnswer(Open):
    """Where each file stands in a memory."""

    object: Literal["memory.map"]
    """Always `memory.map`."""
    name: str
    """The memory."""
    tokens: int
    """Tokens that it holds."""
    files: list[FileAnswer]
    """All versions of all files, in the order in which they were read."""


class SourceAnswer(Open):
    """Lines of a file as a memory read it."""

    object: Literal["memory.source"]
    """Always `memory.source`."""
    name: str
    """The memory."""
    path: str
    """The file, as citations call it."""
    sha256: str
    """The digest of all its lines as the memory read them, in hexadecimal digits."""
    outdated: bool
    """Whether it is an earlier version, or one of a file that is gone."""
    stale: bool | None
    """Whether the file is another one now. Null where it cannot be looked at."""
    tokens: list[int]
    """Its first token and the first one behind it, from the beginning of the memory."""
    total_lines: int
    """Lines of the whole file."""
    first_line: int
    """The number of the first of `lines`, from 1."""
    lines: list[str]
    """The lines without their ends, at most 2,000."""
    token_line: int | None
    """The line of the token that was asked for, where one was."""


class ChangesAnswer(Open):
    """Files that are not as a memory read them."""

    object: Literal["memory.changes"]
    """Always `memory.changes`."""
    name: str
    """The memory."""
    known: bool
    """Whether its source could be looked at. If not, the lists are empty."""
    reason: str | None
    """Why it could not be looked at; null where it could."""
    changed: list[str]
    """Paths of files that were edited."""
    new: list[str]
    """Paths of files that were not there before."""
    removed: list[str]
    """Paths of files that are gone, or left out now."""


class RivalAnswer(Open):
    """Another architecture's bytes."""

    name: str
    """The architecture."""
    bytes: int
    """What its cache of as many tokens takes."""


class BytesAnswer(Open):
    """Bytes that a memory takes, by kind."""

    object: Literal["memory.bytes"]
    """Always `memory.bytes`."""
    name: str
    """The memory."""
    tokens: int
    """Tokens that it holds."""
    layers: int
    """Layers of the model."""
    format: str
    """The number format of the cache."""
    kinds: dict[str, int]
    """Bytes of each kind, such as `csa_entries`, `index_keys`, `hca_entries` and `window`."""
    total: int
    """All of them together."""
    same_layers: int
    """What DeepSeek-V3.2 would keep in as many layers as this model has."""
    rivals: list[RivalAnswer]
    """What whole models of other architectures would keep of as many tokens."""


class HeadAnswer(Open):
    """The head of a shared memory."""

    name: str
    """The memory."""
    head: str
    """A name for all that it holds; another text behind it, another name."""
    tokens: int | None = None
    """Tokens that it holds, after an append."""


class RecallUsage(Open):
    """Tokens of a recall."""

    prompt_tokens: int
    """Tokens of the cue, and of what goes before it."""
    completion_tokens: int
    """Tokens that were recalled."""
    cached_tokens: int
    """Tokens of the prompt that were known and not run again."""


class RecallAnswer(Open):
    """What followed a cue, and where it stands."""

    memory: str
    """The memory."""
    cue: str
    """The cue as it was sent."""
    text: str
    """What follows it."""
    finish_reason: str
    """`stop` (the text ended, or a stop text came), or `length`."""
    cue_tokens: int
    """Tokens of the cue that the model was given."""
    cue_matched: int
    """How many of them, from the last one back, stand before the place that the model looked at. Fewer than
    `cue_tokens`: the cue does not stand there whole."""
    citations: list[CitationAnswer]
    """Lines that the text came from, at most 5, the largest share first."""
    usage: RecallUsage
    """Tokens of the recall."""


class MatchAnswer(Open):
    """A line that holds a text."""

    path: str
    """The file, as citations call it."""
    line: int
    """The line's number, from 1."""
    text: str
    """The whole line."""


class SearchAnswer(Open):
    """Lines that hold a text."""

    memory: str
    """The memory."""
    matches: list[MatchAnswer]
    """The lines, file by file, of the present versions only."""
    complete: bool
    """Whether these are all: false when there were more than `limit`."""


class AskAnswer(Open):
    """An answer, the lines it rests on, the places that were shown, and what each step took."""

    memory: str
    """The memory."""
    question: str
    """The question as it was sent."""
    with_: str = Field(alias="with")
    """The model that worded the answer."""
    text: str
    """The answer."""
    found: bool
    """Whether any place fitted the question."""
    citations: list[Json]
    """Lines that hold what the answer says: `number` of the place, `path`, `first_line`, `last_line`, and whether the
    model `marked` the place itself. Empty: no shown line holds it."""
    places: list[Json]
    """Places that the model was shown: `number`, `path`, `first_line`, `last_line`, `text`, `title`, `tokens`, `score`,
    and `ranks` in the lists that proposed it."""
    steps: list[Json]
    """What was done: `name`, `detail`, `tokens` and `seconds` of each step."""
    finish_reason: str
    """`stop`, or `length` when `max_tokens` cut it."""
    usage: Json
    """`prompt_tokens` and `completion_tokens` of the model that worded the answer."""
