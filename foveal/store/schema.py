"""What the record of a context may say: one schema for all of them, those of the store and those of an exported file.

A record is read only when every field has its type and lies in its range, and written only then too. `RecordError`
names the field that does not fit. What the owner of a context adds (`facts`) is plain JSON; where it is that of a
memory, and in every exported file, the fields that Foveal knows are checked like the rest.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from foveal.config import PAGE_TOKENS
from foveal.errors import FovealError
from foveal.store.errors import InvalidName
from foveal.store.schema_words import in_our_words

CONTEXT_VERSION = 1
RECORD_BYTES = 16 << 20
"""Most bytes that the record in an exported file may have, and how many values may be in it."""
RECORD_VALUES = 1 << 20
PAGE_BYTES = 32 << 20
"""Most bytes of a page: more than any model and number format needs."""
_DEPTH = 32
"""How deep lists and objects in `facts` may lie in each other."""
_MOST = 1 << 48
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DATE = r"\A(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?)?\Z"

Count = Annotated[int, Meta(ge=0, le=_MOST)]
Position = Annotated[int, Meta(ge=1, le=_MOST)]
Limit = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
"""Something that was asked for, not counted: "no limit" is a number, too."""
Token = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Key = Annotated[str, Meta(min_length=64, max_length=64)]
"""Of 32 bytes; that these are hexadecimal digits is checked for all keys of a record together."""
Origin = Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
Date = Annotated[str, Meta(pattern=_DATE)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]


class RecordError(FovealError, ValueError):
    """A record does not fit the schema; the message names the field and says what is wrong with it."""

    code = "damaged"


class _Source(Struct):
    source: str
    max_file_bytes: Limit | None = None
    include: list[str] = []
    exclude: list[str] = []
    use_gitignore: bool = True
    elsewhere: bool = False
    paths: list[str] = []


class _Totals(Struct):
    files: Count
    text_bytes: Count
    tokens: Count
    seconds: Seconds
    skipped: list[tuple[str, str]]
    complete: bool
    run: Count = 0


class _Facts(Struct):
    """What a memory says of itself. Other fields may stand beside these."""

    model: str | UnsetType = UNSET
    cache: Annotated[str, Meta(pattern=r"\A[a-z0-9]{1,16}\+[a-z0-9]{1,16}\Z")] | UnsetType = UNSET
    source: _Source | UnsetType = UNSET
    totals: _Totals | UnsetType = UNSET
    page_bytes: Annotated[int, Meta(ge=0, le=PAGE_BYTES)] | UnsetType = UNSET
    tail_every: Position | Literal["auto", "full", "none"] | UnsetType = UNSET
    unread: list[str] = []
    appending: bool = False


class _FileSource(_Source, forbid_unknown_fields=True):
    pass


class _FileTotals(_Totals, forbid_unknown_fields=True):
    pass


class _FileFacts(_Facts):
    """The same in an exported file: source and totals have no other fields, for whoever loads a memory knows none."""

    source: _FileSource | UnsetType = UNSET
    totals: _FileTotals | UnsetType = UNSET


class _Fingerprint(Struct, forbid_unknown_fields=True):
    weights: str
    tokenizer: str
    architecture: str
    numbers: str
    rotary: str


class _Common(Struct, forbid_unknown_fields=True, kw_only=True):
    version: Literal[1]
    fingerprint: _Fingerprint
    length: Count
    rest: Annotated[list[Token], Meta(max_length=PAGE_TOKENS - 1)] = []
    created: Date = ""
    saved: Date = ""
    forked_at: Count = 0
    keeps_tails: bool = True
    pinned: bool = False
    labels: dict[str, str] = {}
    facts: dict[str, Any] = {}


class _Stored(_Common, forbid_unknown_fields=True, kw_only=True):
    """A record of a store. Its name may be any text: older versions took in what has to be listed and deleted."""

    name: str
    tenant: Key
    head: Key
    tails: list[tuple[Position, Key]] = []
    maps: list[tuple[Position, Key]] = []
    parent: str = ""
    origin: Origin = ""


class _Exported(_Common, forbid_unknown_fields=True, kw_only=True):
    """The record in an exported file: without keys, which are a secret of the store."""

    name: str
    tenant: Literal[""] = ""
    head: Literal[""] = ""
    tails: Annotated[list[Any], Meta(max_length=0)] = []
    maps: Annotated[list[Any], Meta(max_length=0)] = []
    parent: Literal[""] = ""


MEMORY_FACTS = frozenset({"model", "cache", "source", "totals"})
"""Facts that have all of these are those of a memory."""


def check_stored(record: Mapping[str, Any]) -> None:
    """Raise `RecordError` unless `record`, in JSON's types, is one that a store may hold."""
    found = _convert(record, _Stored)
    _check_common(found)
    for field, text in (("name", found.name), ("parent", found.parent)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RecordError(f"{field}: is no text ({error})") from error
    _check_keys("tenant", [found.tenant])
    _check_keys("head", [found.head])
    for field, entries in (("tails", found.tails), ("maps", found.maps)):
        _check_ascending(field, entries, found.length)
        _check_keys(field, [key for _, key in entries])
    if found.facts.keys() >= MEMORY_FACTS:
        _convert(found.facts, _Facts, "facts")


def check_exported(record: Mapping[str, Any]) -> None:
    """Raise `RecordError` unless `record`, in JSON's types, is one that a file may bring."""
    found = _convert(record, _Exported)
    try:
        check_name(found.name)
    except InvalidName as error:
        raise RecordError(f"name: {error}") from error
    for text in (*found.labels, *found.labels.values()):
        if not text.isprintable():
            raise RecordError(f"labels: must be printable, and one is {text!a}")
    _check_common(found)
    _convert(found.facts, _FileFacts, "facts")


def parse(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The object in a record's bytes, not checked any further. Raises `RecordError` when it is no JSON in ASCII."""
    try:
        found = json.loads(str(data, "ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise RecordError("it must be an object")
    return found


def parse_exported(data: bytes) -> dict[str, Any]:
    """The checked record of an exported file. Raises `RecordError`."""
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if len(data) > RECORD_BYTES or values > RECORD_VALUES:
        raise RecordError(f"it is larger than any record ({len(data):,} bytes, about {values:,} values)")
    found = parse(data)
    check_exported(found)
    return found


def check_name(name: str) -> str:
    """`name`, when it is a plain name. Raises `InvalidName`."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{name[:120]!r} is not a name for a memory: use 1 to 100 letters, digits, '.', '_' or '-', not beginning "
            "with '.' or '-'"
        )
    return name


# ---------------------------------------------------------------------- inside


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _check_common(record: _Common) -> None:
    due = record.length % PAGE_TOKENS
    if len(record.rest) != due:
        raise RecordError(f"rest: must have {due} tokens for a length of {record.length}, it has {len(record.rest)}")
    for field, text in (("created", record.created), ("saved", record.saved)):
        try:
            if text:
                datetime.datetime.fromisoformat(text)
        except ValueError as error:
            raise RecordError(f"{field}: must be a date and time, it is {text!r}") from error
    _check_plain(record.facts, "facts", _DEPTH)


def _check_ascending(field: str, entries: list[tuple[int, str]], length: int) -> None:
    before = 0
    for position, _ in entries:
        if not before < position <= length:
            raise RecordError(f"{field}: positions must ascend up to {length}, and one is {position} behind {before}")
        before = position


def _check_keys(field: str, keys: list[str]) -> None:
    try:
        size = len(bytes.fromhex("".join(keys)))
    except ValueError as error:
        raise RecordError(f"{field}: must be in hexadecimal digits") from error
    if size != 32 * len(keys):  # `fromhex` passes over blanks
        raise RecordError(f"{field}: must be in hexadecimal digits")


def _check_plain(value: Any, where: str, depth: int) -> None:
    """Numbers that JSON can say again, and no deeper than anybody prints."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{where}: must be a finite number")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >> 63:
        raise RecordError(f"{where}: must have less than 64 bits")
    if not isinstance(value, list | tuple | dict):
        return
    if not depth:
        raise RecordError(f"{where}: is nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value:
        if not isinstance(inner, (str, bool, type(None))):
            _check_plain(inner, where, depth - 1)


def _convert(data: Mapping[str, Any], type: Any, within: str = "") -> Any:
    try:
        return msgspec.convert(data, type, strict=True)
    except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
        raise RecordError(in_our_words(str(error), within)) from error
