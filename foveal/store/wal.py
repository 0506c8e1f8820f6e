"""SQLite's log, looked at from outside: SQLite itself passes over everything behind a frame that is not whole.

So a flipped bit in the log undoes changes without a word. The format: https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import struct
from pathlib import Path

from foveal.store.files import Disk

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = (0x377F0682, 0x377F0683)


def log_problems(path: Path, disk: Disk) -> list[str]:
    """What is wrong with the log at `path`, in words; nothing for a log that ends in what a process that died left.

    Raises `OSError`.
    """
    data = disk.read_file(path) or b""
    if len(data) < _HEADER.size:
        return []
    magic, _, page_size, _, *rest = _HEADER.unpack_from(data)
    order = ">" if magic == _MAGIC[1] else "<"
    state = _sum(data[:24], order, (0, 0))
    if magic not in _MAGIC or state != tuple(rest[2:]):
        # An empty log, or one whose header never came to the disk, is zeros.
        return [f"the header of {path.name} is damaged"] if any(data[:32]) else []
    return _bad_frames(path, data, page_size, order, state, (rest[0], rest[1]))


def _bad_frames(
    path: Path, data: bytes, page_size: int, order: str, state: tuple[int, int], salt: tuple[int, int]
) -> list[str]:
    """A frame that is not whole, with a commit of the same log behind it: what was torn has nothing behind it."""
    step, bad = _FRAME.size + page_size, None
    for start in range(_HEADER.size, len(data) - step + 1, step):
        _, size, salt1, salt2, *found = _FRAME.unpack_from(data, start)
        state = _sum(data[start : start + 8], order, state)
        state = _sum(data[start + _FRAME.size : start + step], order, state)
        if bad is None and ((salt1, salt2) != salt or state != tuple(found)):
            bad = start
        elif bad is not None and size and (salt1, salt2) == salt:
            return [f"{path.name} is damaged at {bad}"]
    return []


def _sum(data: bytes, order: str, state: tuple[int, int]) -> tuple[int, int]:
    """SQLite's running checksum over pairs of 32-bit words."""
    one, two = state
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two
