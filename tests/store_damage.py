"""Damage to the files of a store, at random, and whether it must be noticed."""

from __future__ import annotations

import os
import random
from pathlib import Path

from foveal.store.records import HEADER_BYTES


def flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0] ^ 1 << bit
        file.seek(byte)
        file.write(bytes([value]))


class Damage:
    """`light`: one thing, which must cost no context. `counts`: it hit bytes that `verify` must miss."""

    def __init__(self, dice: random.Random, sizes: dict[Path, int], live: dict[str, list[list[int]]]) -> None:
        self.dice, self.sizes, self.live = dice, sizes, live
        self.light, self.counts, self.what = True, False, ""

    def do(self) -> None:
        full = [path for path, size in self.sizes.items() if size]
        packs = [path for path in full if path.suffix == ".pack"]
        # Every file as often as every other, but packs together as often as all else.
        path = self.dice.choice(packs if packs and self.dice.random() < 0.5 else full)
        kinds = [
            self._flip,
            self._flip,
            self._flip,
            self._flips,
            self._truncate,
            self._delete,
            self._zeros,
            self._append,
        ]
        self.dice.choice(kinds)(path)
        if self.dice.random() < 0.2:
            self.light = False
            self.dice.choice(kinds)(self.dice.choice([path for path in full if path.exists()] or [path]))

    def _note(self, path: Path, what: str, start: int, end: int, *, light: bool) -> None:
        self.what += f"{what} {path.name} ({start} to {end}); "
        pack = path.suffix == ".pack"
        self.light = self.light and (light or not pack)
        self.counts = self.counts or any(a < end and start < b for a, b in self.live.get(path.name, []))

    def _flip(self, path: Path) -> None:
        self._change(path, self._somewhere(path))

    def _somewhere(self, path: Path) -> int:
        """Any byte, or one of a header of a record, or near an end."""
        size = os.path.getsize(path) if path.exists() else 0
        starts = [start for start, _ in self.live.get(path.name, []) if start < size]
        if starts and self.dice.random() < 0.5:
            return min(size - 1, self.dice.choice(starts) + self.dice.randrange(HEADER_BYTES + 150))
        return self.dice.randrange(size) if size else 0

    def _change(self, path: Path, byte: int) -> None:
        if not path.exists() or byte >= os.path.getsize(path):
            return
        self._note(path, "flip in", byte, byte + 1, light=True)
        flip(path, byte, self.dice.randrange(8))

    def _flips(self, path: Path) -> None:
        for _ in range(self.dice.randrange(2, 20)):
            self._change(path, self._somewhere(path))
        self.light = self.light and path.suffix != ".pack"

    def _truncate(self, path: Path) -> None:
        size = os.path.getsize(path) if path.exists() else 0
        if size:
            left = self.dice.choice([0, size - 1, self.dice.randrange(size)])
            self._note(path, "truncated", left, size, light=False)
            os.truncate(path, left)

    def _delete(self, path: Path) -> None:
        self._note(path, "deleted", 0, self.sizes[path], light=False)
        path.unlink(missing_ok=True)

    def _zeros(self, path: Path) -> None:
        size = os.path.getsize(path) if path.exists() else 0
        start = self.dice.randrange(size) // 512 * 512 if size else 0
        with path.open("r+b") as file:
            file.seek(start)
            before = file.read(min(4096, size - start))
            file.seek(start)
            file.write(bytes(len(before)))
        changed = [place for place, value in enumerate(before) if value]
        if changed:
            self._note(path, "zeros in", start + changed[0], start + changed[-1] + 1, light=False)

    def _append(self, path: Path) -> None:
        """What somebody who died left behind, or garbage."""
        more = self.dice.randbytes(self.dice.randrange(1, 5000))
        with path.open("ab") as file:
            file.write(more)
        self.what += f"{len(more)} bytes behind {path.name}; "
