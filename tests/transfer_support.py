"""Exported files taken apart and put together again with right checksums, as a stranger would."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterable
from typing import Any

from store_support import Runner, made_up_source_map, random_tokens

from foveal.store import exported, saving, transfer
from foveal.store.hashes import checksum
from foveal.store.objects import StoredTail
from foveal.store.store import Store

Part = tuple[bytes, bytes]
FACTS = {
    "model": "nano",
    "cache": "fp32+fp32",
    "page_bytes": 0,
    "tail_every": "auto",
    "source": {"source": "/home/somebody/project", "include": [], "exclude": []},
    "totals": {"files": 1, "text_bytes": 9, "tokens": 1100, "seconds": 1.5, "skipped": [["x", "y"]], "complete": True},
}


def exported_memory(store: Store, runner: Runner, length: int = 1100, name: str = "a") -> bytes:
    """A context with tails, a source map and a memory's facts, saved in `store` under `name`, as a file."""
    sequence = runner.read(random_tokens(length), tail_every=512)
    facts = {**FACTS, "page_bytes": runner.pool.layout.page_bytes}
    saving.save(store, name, sequence, runner.fingerprint, source_map=made_up_source_map(length), facts=facts)
    file = io.BytesIO()
    transfer.export(store, name, file)
    return file.getvalue()


def apart(data: bytes) -> list[Part]:
    """The parts of a file, but the last."""
    found, place = [], exported.START.size
    while True:
        what, _, size, _ = exported.FRAME.unpack_from(data, place)
        place += exported.FRAME.size
        if what == exported.END:
            return found
        found.append((what, data[place : place + size]))
        place += size


def together(parts: Iterable[Part], *, sealed: bool = True) -> bytes:
    """A file of these parts with right checksums; `sealed`: with its end."""
    data = exported.START.pack(exported.FILE_MAGIC, exported.FILE_VERSION)
    data += b"".join(bytes(piece) for what, payload in parts for piece in exported.frame(what, payload))
    if not sealed:
        return data
    from hashlib import blake2b

    end = exported.frame(exported.END, blake2b(data, digest_size=32).digest())
    return data + b"".join(bytes(piece) for piece in end)


def with_record(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with another record: what `change` makes of it."""
    (what, payload), *others = apart(data)
    record = json.loads(payload)
    change(record)
    return together([(what, json.dumps(record).encode()), *others])


def with_page(data: bytes, number: int, change: Callable[[bytearray], object]) -> bytes:
    """The file with other bytes in a page, whose checksum is made anew."""
    parts = apart(data)
    places = [place for place, (what, _) in enumerate(parts) if what == exported.PAGE]
    payload = parts[places[number]][1]
    page = bytearray(payload[exported.PAGE_HEAD :])
    change(page)
    parts[places[number]] = (exported.PAGE, checksum(page) + payload[16 : exported.PAGE_HEAD] + bytes(page))
    return together(parts)


def with_part(data: bytes, kind: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with another payload in its last part of a kind."""
    parts = apart(data)
    place = max(place for place, (what, _) in enumerate(parts) if what == kind)
    parts[place] = (kind, change(parts[place][1]))
    return together(parts)


def with_map(data: bytes, made: bytes) -> bytes:
    """The file with `made` as its last source map part."""
    return with_part(data, exported.MAP, lambda payload: payload[:8] + made)


def source_map(documents: Any, places: bytes) -> bytes:
    """The bytes of a source map with this list of documents and these packed places."""
    from foveal.sources.source_map import _preamble

    head = json.dumps(documents).encode()
    body = struct.pack("<Q", len(head)) + head + places
    return _preamble(body) + body


def with_tail(data: bytes, change: Callable[[StoredTail], StoredTail]) -> bytes:
    def changed(payload: bytes) -> bytes:
        tail = StoredTail.from_bytes(payload)
        assert tail is not None
        return change(tail).to_bytes()

    return with_part(data, exported.TAIL, changed)
