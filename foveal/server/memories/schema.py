"""Bodies of requests to the memories' API."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foveal.server.bodies import Open

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$"


class Text(Open):
    """A text with the path that citations call it by."""

    path: str = Field(min_length=1, max_length=1000)
    """Such as `docs/intro.md`. A path that is absolute or leads out of its folder is refused."""
    text: str
    """What the file holds."""


class CreateRequest(Open):
    """`POST /v1/memories`: of texts, or of a path of the server below a folder that the operator allowed."""

    name: str = Field(pattern=NAME)
    """What the memory is called: at most 100 letters, digits, dots, hyphens and underscores."""
    model: str | None = None
    """The model that reads. Default: the first one that the key may use."""
    text: str | None = None
    """One text, which citations call `text.md`. One of `text`, `files` and `path` is needed."""
    files: list[Text] | None = None
    """Texts with their paths. Two with one path are refused."""
    path: str | None = None
    """A file or folder of the server's, below a `--root`; from the first of them where it is relative."""
    include: list[str] | None = None
    """With `path`: read these files only, by patterns in gitignore's syntax. Default: all."""
    exclude: list[str] | None = None
    """With `path`: leave these files out beside what git ignores, by patterns in gitignore's syntax. Default: none."""
    max_file_bytes: int | None = Field(default=None, ge=1)
    """With `path`: leave larger files out. Default: 1 MiB in a folder, no limit for a file that is named itself."""
    stream: bool | None = False
    """Whether progress comes as server-sent events: `started`, `progress`, `done` with the memory, or `error`."""
    replace: bool | None = False
    """Whether it may take the place of a memory of that name; else there is a conflict (409)."""


class AppendRequest(Open):
    """`POST /v1/memories/{name}/append`."""

    text: str = Field(min_length=1)
    """What is added behind everything."""
    author: str = Field(default="", max_length=100)
    """Whose text it is: the model reads it as a file of that name, and citations call it so."""
    expected_head: str | None = None
    """The head that the caller knows. If the memory has another one, nothing is added (409, with the `head`). Default:
    whatever it is."""
    model: str | None = None
    """The model that reads. Default: the first one that the key may use."""


class ForkRequest(Open):
    """`POST /v1/memories/{name}/fork`, at a token, or at the end."""

    name: str = Field(pattern=NAME)
    """What the fork is called: at most 100 letters, digits, dots, hyphens and underscores. A name that is taken is a
    conflict (409)."""
    at: int | None = Field(default=None, ge=1)
    """Tokens that the fork begins with. Default: all. More than the memory has are refused."""


class SyncRequest(Open):
    """`POST /v1/memories/{name}/sync`."""

    mode: Literal["append", "rebuild"] | None = None
    """Read what changed behind everything, or read anew from the first change on. Default: rebuild if it reads at most
    twice as much, or if more than a quarter would be outdated."""
    stream: bool | None = False
    """Whether progress comes as server-sent events: `started`, `progress`, `done` with the memory, or `error`."""
    model: str | None = None
    """The model that reads. Default: the first one that the key may use."""


class RecallRequest(Open):
    """`POST /v1/memories/{name}/recall`."""

    cue: str = Field(min_length=1)
    """The beginning of what is looked for, as it stands in the source."""
    max_tokens: int = Field(default=64, ge=1, le=4096)
    """Most tokens that are recalled. A recall that reaches them ends with `length`."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """How freely tokens are chosen: 0 takes the likeliest each time."""
    seed: int | None = None
    """The same seed makes the same choices. Default: another one each time."""
    stop: str | list[str] | None = None
    """Texts at which the recall ends; they are no part of it. Default: none. More than 16 are refused."""
    model: str | None = None
    """The model that has read the memory. Default: the first one that the key may use."""


class SearchRequest(Open):
    """`POST /v1/memories/{name}/search`: lines that hold a text."""

    text: str = Field(min_length=1)
    """What is looked for, letter by letter, within a line."""
    limit: int = Field(default=20, ge=1, le=1000)
    """Most lines that are told; `complete` says whether these were all."""
    model: str | None = None
    """The model that has read the memory. Default: the first one that the key may use."""


class AskRequest(Open):
    """`POST /v1/memories/{name}/ask`."""

    question: str = Field(min_length=1, max_length=8000)
    """What is asked, in plain words."""
    with_: str | None = Field(default=None, alias="with")
    """The model that words the answer. Default: the memory's own, or the first that was made to chat."""
    zoom: int = Field(default=3, ge=0, le=32)
    """Places of the memory that are read again. With 0 the model is shown none."""
    max_tokens: int = Field(default=96, ge=1, le=4096)
    """Most tokens of the answer. An answer that reaches them ends with `length`."""
    place_tokens: int = Field(default=480, ge=16, le=16384)
    """Most tokens of all places together; what does not fit is left out, the worst places first."""
    stream: bool | None = False
    """Whether it comes as server-sent events: `places`, `delta` with a `text`, `done` with the answer, or `error`."""
    model: str | None = None
    """The model that has read the memory. Default: the first one that the key may use."""
