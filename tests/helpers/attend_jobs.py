"""Jobs of the native attention kernel, with the reference's input beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal import _native
from foveal.ops import AttendInput, Rotation
from helpers.formats import decode_kv_fp8, encode_kv_fp8


@dataclass(frozen=True)
class Case:
    """Sizes of one job: tokens, heads, channels, window, ratio (0: no entries), chosen (0: all), first position."""

    n: int
    heads: int
    width: int
    window: int
    ratio: int
    k: int
    position: int
    rotary: int = 2
    window_codec: str = "bf16"
    entry_codec: str = "bf16"
    per_page: int = 4
    offset: int = 8

    @property
    def count(self) -> int:
        return (self.position + self.n) // self.ratio if self.ratio else 0


@dataclass(frozen=True)
class Job:
    """A case with numbers: the reference's input, and the bytes a cache would hold."""

    case: Case
    x: AttendInput
    rows: Tensor
    pages: list[Tensor]

    def run(self, runtime: _native.Runtime, first: int = 0, last: int | None = None, trace: int = 0) -> list[Tensor]:
        """Tokens [first, last) as one call: output, and with `trace` the masses of entries and window."""
        out = torch.full_like(self.x.query[first:last], float("nan"))
        native, masses = self.native(first, last, out, trace)
        _native.attend(runtime, [native])
        return [out, *masses]

    def native(
        self, first: int, last: int | None, out: Tensor, trace: int = 0
    ) -> tuple[_native.AttendJob, list[Tensor]]:
        case, position = self.case, self.case.position + first
        end = case.position + (case.n if last is None else last)
        indices = self.x.indices
        columns = case.count if indices is None else case.k
        masses = [torch.full((trace, size), float("nan")) for size in (columns, case.window)] if trace else []
        native = _native.AttendJob(
            query=self.x.query[first:last].contiguous(),
            position=position,
            out=out,
            sink=self.x.sink,
            frequencies=self.x.rotation.frequencies,
            fresh=self.rows[position:end].contiguous(),
            length=position,
            past=self.ring(position),
            window_codec=case.window_codec,
            window_size=case.window,
            pages=self.pages,
            entry_codec=case.entry_codec,
            count=case.count,
            per_page=case.per_page,
            offset=case.offset,
            rotary=case.rotary,
            ratio=case.ratio,
            indices=None if indices is None else indices[first:last].to(torch.int32).contiguous(),
            entry_mass=masses[0] if masses else None,
            window_mass=masses[1] if masses else None,
        )
        return native, masses

    def ring(self, length: int) -> Tensor | None:
        """The rows before `length` as a ring that is no larger than it must be, the rest of it NaN."""
        if not length or self.case.window == 1:
            return None
        size = 1 << (self.case.window - 2).bit_length()
        ring = torch.full((size, *self.rows.shape[1:]), float("nan")).to(torch.bfloat16)
        held = ring.view(torch.int16) if self.rows.dtype is torch.int16 else ring.float()
        kept = torch.arange(max(0, length - self.case.window + 1), length)
        held[kept % size] = self.rows[kept]
        return held


def as_cached(x: Tensor, codec: str, rotary: int) -> tuple[Tensor, Tensor]:
    """What `codec` keeps of rows: as numbers, and as bytes or the tensor itself."""
    if codec == "f32":
        return x, x
    if codec == "bf16":
        return x.bfloat16().float(), x.bfloat16().view(torch.int16)
    packed = encode_kv_fp8(x, rotary)
    return decode_kv_fp8(packed, x.shape[-1], rotary), packed


def pages_of(entries: Tensor, case: Case) -> list[Tensor]:
    """Entries cut into pages, each with rubbish before its first entry and behind its last."""
    raw = entries.contiguous().view(torch.uint8)
    pages = []
    for first in range(0, len(raw), case.per_page):
        part = raw[first : first + case.per_page].reshape(-1)
        pages.append(torch.cat([torch.full((case.offset,), 255, dtype=torch.uint8), part]))
    return pages


def choices(case: Case, generator: torch.Generator) -> Tensor | None:
    if not case.k:
        return None
    rows = []
    for position in range(case.position, case.position + case.n):
        visible = (position + 1) // case.ratio
        chosen = torch.randperm(visible, generator=generator)[: case.k].sort().values
        rows.append(torch.cat([chosen, torch.full((case.k - len(chosen),), -1)]))
    return torch.stack(rows)


def make(case: Case, seed: int) -> Job:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows, raw_rows = as_cached(noise(case.position + case.n, case.width), case.window_codec, case.rotary)
    entries, raw_entries = as_cached(noise(case.count, case.width) * 2, case.entry_codec, case.rotary)
    first = max(0, case.position - case.window + 1)
    x = AttendInput(
        query=noise(case.n, case.heads, case.width),
        positions=torch.arange(case.position, case.position + case.n),
        window=rows[first:],
        window_size=case.window,
        entries=entries,
        indices=choices(case, generator),
        ratio=case.ratio,
        sink=noise(case.heads),
        rotation=Rotation(torch.rand(case.rotary // 2, generator=generator)),
    )
    return Job(case, x, raw_rows, pages_of(raw_entries, case))
