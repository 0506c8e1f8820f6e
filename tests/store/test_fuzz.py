"""Files as a stranger may make them, with right checksums: refused with one line, or taken in, and then all works.

With FOVEAL_SOAK 5,000 new files, not 150.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_support import CHUNK, Runner
from transfer_support import Part, apart, exported_memory, source_map, together

from foveal.memory.names import delete_memory, list_memories
from foveal.store import contexts, eviction, loading, recompute, transfer, usage
from foveal.store.errors import FingerprintMismatch, StoreError
from foveal.store.exported import TransferError
from foveal.store.objects import StoredTail
from foveal.store.store import Store
from foveal.store.verify import verify

EXAMPLES = 5000 if os.environ.get("FOVEAL_SOAK") else 150
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 255, 256, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, -0.5, 1e308, float("nan")),
    *(float("inf"), "", "a", "../x", "/etc/passwd", "a\nb", "\x1b[31m", "\0", "\ud800", "\udcff", "0" * 64, "x" * 5000),
    *([], {}, [None], [[]], [[1, "a"]], [["a", "b"]], {"": ""}, {"a": 1}, {"version": 1}, "2024-01-01T00:00:00"),
]


class _Mutation:
    """Changes to a file, drawn from `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def file(self, data: bytes) -> bytes:
        parts = apart(data)
        for _ in range(self.rng.choice((1, 1, 1, 2, 5))):
            if parts:
                parts = self.rng.choice((self.part, self.part, self.part, self.order))(parts)
        made = together(parts)
        return self.bytes(made, 3) if self.rng.random() < 0.05 else made

    def order(self, parts: list[Part]) -> list[Part]:
        """Leave out, repeat, exchange."""
        first, second = self.rng.randrange(len(parts)), self.rng.randrange(len(parts))
        parts = list(parts)
        match self.rng.randrange(4):
            case 0:
                del parts[first]
            case 1:
                parts.insert(second, parts[first])
            case 2:
                parts[first], parts[second] = parts[second], parts[first]
            case 3:
                parts[first] = (self.rng.choice([b"CTXT", b"PAGE", b"TAIL", b"SMAP", b"XXXX"]), parts[first][1])
        return parts

    def part(self, parts: list[Part]) -> list[Part]:
        kind = self.rng.choice(sorted({what for what, _ in parts}))
        place = self.rng.choice([place for place, (what, _) in enumerate(parts) if what == kind])
        parts, (what, payload) = list(parts), parts[place]
        deep = {b"CTXT": self.record, b"TAIL": self.tail, b"SMAP": self.map}.get(what)
        try:
            changed = deep(payload) if deep is not None and self.rng.random() < 0.8 else self.bytes(payload)
        except (
            ValueError,
            TypeError,
            KeyError,
            struct.error,
            AttributeError,
            zlib.error,
        ):  # changed beyond that already
            changed = self.bytes(payload)
        parts[place] = (what, changed)
        return parts

    def bytes(self, data: bytes, most: int = 8) -> bytes:
        made = bytearray(data)
        for _ in range(self.rng.randint(1, most)):
            place = self.rng.randrange(len(made) + 1)
            match self.rng.randrange(4):
                case 0:
                    made[place : place + 1] = self.rng.randbytes(1)
                case 1:
                    del made[place : place + self.rng.choice((1, 4, 256, len(made)))]
                case 2:
                    made[place:place] = self.rng.randbytes(self.rng.choice((1, 4, 256)))
                case 3:
                    size = self.rng.choice((0, 1, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, len(made)))
                    made[place : place + 8] = struct.pack("<Q", size)
        return bytes(made)

    def json(self, value: Any) -> Any:
        """`value` with something odd somewhere in it."""
        value = copy.deepcopy(value)
        inside = value
        while isinstance(inside, dict | list) and inside:
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            key = self.rng.choice(keys)
            if not (isinstance(inside[key], dict | list) and inside[key]) or self.rng.random() < 0.3:
                break
            inside = inside[key]
        if not isinstance(inside, dict | list) or not inside:
            return self.rng.choice(ODD)
        match self.rng.randrange(4):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside[self.rng.choice(["zzz", "", "a\n", "tails", "origin", "totals"])] = self.rng.choice(ODD)
            case 1:
                inside.insert(key, self.rng.choice(ODD))
            case _:
                near = inside[key] + self.rng.choice((-1, 1)) if type(inside[key]) is int else None
                inside[key] = near if near is not None and self.rng.random() < 0.5 else self.rng.choice(ODD)
        return value

    def record(self, payload: bytes) -> bytes:
        return json.dumps(self.json(json.loads(payload))).encode()

    def tail(self, payload: bytes) -> bytes:
        tail = StoredTail.from_bytes(payload)
        if tail is None or self.rng.random() < 0.3:
            at = self.rng.choice((64, 72, 80))
            return payload[:at] + struct.pack("<Q", self.rng.choice((0, 1, 256, 512, 1 << 63))) + payload[at + 8 :]
        match self.rng.randrange(3):
            case 0:
                (size,) = struct.unpack_from("<Q", tail.tensors)
                head = json.dumps(self.json(json.loads(tail.tensors[8 : 8 + size]))).encode()
                tensors = struct.pack("<Q", len(head)) + head + tail.tensors[8 + size :]
                return self._tail(tail, tensors=tensors)
            case 1:
                return self._tail(tail, rest=self.bytes(tail.rest, 1))
            case _:
                return self._tail(tail, open_page=self.bytes(bytes(tail.open_page), 2))

    @staticmethod
    def _tail(tail: StoredTail, **changes: Any) -> bytes:
        known = {name: getattr(tail, name) for name in ("name", "node", "position", "rest", "open_page", "tensors")}
        return StoredTail(**{**known, **changes}).to_bytes()

    def map(self, payload: bytes) -> bytes:
        end, body = payload[:8], payload[8 + 56 :]
        (size,) = struct.unpack_from("<Q", body)
        documents, packed = json.loads(body[8 : 8 + size]), body[8 + size :]
        match self.rng.randrange(4):
            case 0:
                end = struct.pack("<Q", self.rng.choice((0, 1, 1099, 1101, 1 << 63)))
            case 1:
                documents = self.json(documents)
            case 2:
                packed = self.bytes(packed, 2)
            case 3:
                packed = zlib.compress(self.bytes(zlib.decompress(packed), 2))
        return end + source_map(documents, packed)


class _Place:
    """A store that many files are offered to."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store", durability="off")
        with Store(folder / "from", durability="off") as other:
            self.data = exported_memory(other, Runner())
        self.taken = self.refused = 0

    def offer(self, data: bytes, trust: bool) -> None:
        before = self._state()
        try:
            made = transfer.import_file(self.store, io.BytesIO(data), trust=trust)
        except TransferError as error:
            self.refused += 1
            assert str(error).isprintable() and len(str(error)) < 1000
            assert self._state() == before
            return
        self.taken += 1
        self._use(made.name)
        delete_memory(made.name, self.store)
        assert self.store.contexts() == [] and not self.store.look(lambda index: index.objects.all())
        assert verify(self.store).sound

    def _state(self) -> Any:
        return self.store.look(lambda index: (index.contexts.all(), index.objects.all())), self.store.packs.files()

    def _use(self, name: str) -> None:
        """Whatever can be done with a memory."""
        store, runner = self.store, Runner()
        assert verify(store).sound
        (info,) = list_memories(store)
        assert info.name == name and json.dumps([info.facts, info.problem], allow_nan=False)
        usage.usage(store)
        context = store.context(name)
        if context.maps:
            assert contexts.read_map(store, context).tokens == context.length
        file = io.BytesIO()
        transfer.export(store, name, file)
        if context.length > 1:
            contexts.fork(store, name, "fork", at=context.length - 1)
            contexts.change(store, "fork", pinned=True)
            contexts.delete(store, "fork")
        try:
            recompute.recompute(store, [name], runner.fingerprint, runner, chunk=CHUNK)
            loaded = loading.load(store, store.context(name), runner.fingerprint, runner, chunk=CHUNK)
            runner.prefill(loaded.sequence, [1, 2, 3])
        except (FingerprintMismatch, StoreError) as error:
            assert isinstance(error, FingerprintMismatch) or "that the model knows" in str(error), error
        eviction.evict(store, 0)
        assert verify(store).sound


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> _Place:
    return _Place(tmp_path_factory.mktemp("fuzz"))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rng=st.randoms(use_true_random=True), trust=st.booleans())
def test_any_file_is_refused_or_works(place: _Place, rng: random.Random, trust: bool) -> None:
    place.offer(_Mutation(rng).file(place.data), trust)


def test_the_file_itself_is_taken(place: _Place) -> None:
    taken = place.taken
    place.offer(place.data, False)
    place.offer(place.data, True)
    assert place.taken == taken + 2
