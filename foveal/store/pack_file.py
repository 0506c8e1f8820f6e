"""The file of a pack: what it is called, and how it begins. The bytes stand in docs/store.md."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from foveal.store.files import Disk
from foveal.store.hashes import checksum

PACK_MAGIC = b"FovealPk"
PACK_HEADER_BYTES = 64
VERSION = 1

_HEADER = struct.Struct("<8sI4xQ16s8x")
_NAME = re.compile(r"([0-9]{10})\.pack")


def pack_name(pack: int) -> str:
    """The file name of pack number `pack`."""
    return f"{pack:010}.pack"


def pack_number(name: str) -> int | None:
    """The number of the pack of that file name; None when it is no pack's."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def pack_header(pack: int, store: bytes) -> bytes:
    """The first 64 bytes of a pack of the store with that identity (16 bytes)."""
    head = _HEADER.pack(PACK_MAGIC, VERSION, pack, store)
    return head + checksum(head)


def owners(folder: Path, disk: Disk) -> Iterator[bytes]:
    """The identity of the store that each pack in `folder` says it belongs to, of those that begin as packs do. Raises
    `OSError`."""
    for name in sorted(disk.sizes(folder)):
        if pack_number(name) is None:
            continue
        with contextlib.suppress(FileNotFoundError), open(disk.open(folder / name), "rb") as file:
            head = file.read(PACK_HEADER_BYTES)
            if len(head) == PACK_HEADER_BYTES and checksum(head[: _HEADER.size]) == head[_HEADER.size :]:
                yield _HEADER.unpack_from(head)[3]
