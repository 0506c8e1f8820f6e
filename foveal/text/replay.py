"""Exact replay: turns that the model sampled go back into the prompt as the very ids that were sampled.

A client sends a conversation back as JSON, normalised in its own way. Text made into tokens again is seldom what was
sampled (`` ~`` in one token or two, the keys of arguments in another order, the reasoning left out), and from the first
other token on nothing that was computed can be used. So each sampled turn is recorded with its ids, and takes the place
of its rendering whenever it is the same turn.

A turn is the same when
1. the ids before it are exactly those that were read before it was sampled, and
2. the message says the same: content equal but for white space at its ends; calls of the same names in the same order,
   with arguments equal as JSON values (numbers as JavaScript has them); reasoning equal, or left out.
Ids of calls do not matter. Any other turn is rendered from its text, and none after it can be the same by rule 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from foveal.text.calls import strict_json
from foveal.text.chat import Rendered
from foveal.text.messages import AssistantMessage, Conversation
from foveal.text.tokenizer import Tokenizer
from foveal.text.wtf8 import to_bytes

_DIGEST_BYTES = 16


class TurnRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One sampled turn.

    length, before: how many ids stood before the turn's head, and their digest.
    said, reasoning: digests of the normalised message (content and calls), and of its reasoning.
    head: ids of the prompt that begin the turn.   ids: what was sampled, a token that ends the turn included; both as
    little-endian int32.
    """

    length: int
    before: bytes
    said: bytes
    reasoning: bytes
    head: bytes
    ids: bytes

    def whole(self) -> list[int]:
        """The ids of the turn."""
        return np.frombuffer(self.head + self.ids, dtype="<i4").tolist()


@dataclass(frozen=True)
class Replayed:
    """A prompt with sampled ids in it.

    head: where the head of the turn to be generated begins, as in `Rendered`.
    turns: for each turn of the rendered prompt, whether its sampled ids were used.
    """

    ids: list[int]
    head: int
    turns: tuple[bool, ...]


class TurnRecords:
    """The sampled turns of a context, of all its branches. Kept with it: `encode` and `decode`. For one thread."""

    def __init__(self, records: Iterable[TurnRecord] = ()) -> None:
        self._records: dict[tuple[int, bytes], list[TurnRecord]] = {}
        for record in records:
            self._keep(record)

    @classmethod
    def decode(cls, data: bytes) -> TurnRecords:
        """What `encode` gave. Raises `ValueError` for anything else."""
        try:
            return cls(msgspec.msgpack.decode(data, type=list[TurnRecord]))
        except msgspec.DecodeError as error:
            raise ValueError(f"these are no records of turns: {error}") from error

    def encode(self) -> bytes:
        """All records, as bytes (msgpack)."""
        return msgspec.msgpack.encode(self.all())

    def all(self) -> list[TurnRecord]:
        """All records."""
        return [record for records in self._records.values() for record in records]

    def __len__(self) -> int:
        return sum(map(len, self._records.values()))

    def add(self, prompt: Sequence[int], head: int, sampled: Sequence[int], message: AssistantMessage) -> TurnRecord:
        """Record a turn.

        prompt: the ids that were read.   head: where in them the turn's head begins.
        sampled: the ids of the reply, without what a stop string cut off (`before_stop`).
        message: as it was returned to the client.
        """
        record = TurnRecord(
            length=head,
            before=_Digest(prompt[:head]).value(),
            said=_said(message),
            reasoning=_hashed(message.reasoning.strip()),
            head=_packed(prompt[head:]),
            ids=_packed(sampled),
        )
        self._keep(record)
        return record

    def replay(self, rendered: Rendered, conversation: Conversation, stop_tokens: Sequence[int]) -> Replayed:
        """The prompt in which every turn that is the same as a recorded one has its sampled ids.

        A turn that was cut short gets the token that ends it in the rendering.
        """
        ids: list[int] = []
        digest = _Digest()
        used: list[bool] = []
        place = 0
        for turn in rendered.turns:
            _extend(ids, digest, rendered.ids[place : turn.start])
            message = conversation.messages[turn.message]
            assert isinstance(message, AssistantMessage)
            record = self._same(len(ids), digest, message)
            said = rendered.ids[turn.start : turn.end] if record is None else record.whole()
            if record is not None and (not record.ids or said[-1] not in stop_tokens):
                said.append(rendered.ids[turn.end - 1])
            _extend(ids, digest, said)
            used.append(record is not None)
            place = turn.end
        ids += rendered.ids[place:]
        return Replayed(ids, len(ids) - (len(rendered.ids) - rendered.head), tuple(used))

    def _keep(self, record: TurnRecord) -> None:
        branch = self._records.setdefault((record.length, record.before), [])
        if record not in branch:
            branch.append(record)

    def _same(self, length: int, digest: _Digest, message: AssistantMessage) -> TurnRecord | None:
        """The latest record of the same turn."""
        branch = self._records.get((length, digest.value())) if self._records else None
        if not branch:
            return None
        said, reasoning = _said(message), _hashed(message.reasoning.strip())
        left_out = not message.reasoning.strip()
        same = (r for r in reversed(branch) if r.said == said and (left_out or r.reasoning == reasoning))
        return next(same, None)


def before_stop(tokenizer: Tokenizer, sampled: Sequence[int], stop: str | None) -> list[int]:
    """The sampled ids without what a stop string cut off, if one did: it ended inside the last token.

    A token in which the stop string begins is replaced by its text before that. All ids if the string is not in them.
    """
    if stop is None:
        return list(sampled)
    wanted, tail = to_bytes(stop), b""
    for place in range(len(sampled) - 1, -1, -1):
        tail = tokenizer.token_bytes(sampled[place]) + tail
        found = tail.find(wanted)
        if found < 0:
            continue
        try:
            return [*sampled[:place], *tokenizer.encode(tail[:found].decode())]
        except UnicodeDecodeError:  # the text before it begins in an earlier token
            continue
    return list(sampled)


class _Digest:
    """A digest over ids that grows with them."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self.add(ids)

    def add(self, ids: Sequence[int]) -> None:
        self._hash.update(_packed(ids))

    def value(self) -> bytes:
        return self._hash.digest()


def _packed(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def _extend(ids: list[int], digest: _Digest, more: Sequence[int]) -> None:
    ids += more
    digest.add(more)


def _said(message: AssistantMessage) -> bytes:
    calls = [[call.name, _normalised(call.arguments)] for call in message.tool_calls]
    return _hashed(json.dumps([message.content.strip(), calls], sort_keys=True))


def _normalised(arguments: str) -> Any:
    """The value of a JSON text as it survives a client; other text as it is."""
    try:
        return _value(strict_json(arguments or "{}"))
    except (ValueError, RecursionError):
        return ["text", arguments]


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _value(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_value(entry) for entry in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        return float(value) + 0.0  # -0.0 becomes 0.0
    except OverflowError:
        return str(value)


def _hashed(text: str) -> bytes:
    return hashlib.blake2b(to_bytes(text), digest_size=_DIGEST_BYTES).digest()
