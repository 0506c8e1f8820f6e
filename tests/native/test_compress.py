"""The native compressors and codecs, on every instruction set, against the reference and foveal.cache.codec."""

from __future__ import annotations

from zlib import crc32

import pytest
import torch
from helpers.formats import TensorCodec
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops.compression import compress
from foveal.cache.codec import IndexFp4, IndexFp8, KvFp8, Raw
from foveal.formats import BF16, F32
from foveal.ops import CompressInput, Rotation, reference

EPS = 1e-6


@pytest.fixture(params=[(isa, threads) for isa in _native.available_isas() for threads in (1, 2)], ids=str)
def runtime(request: pytest.FixtureRequest) -> _native.Runtime:
    isa, threads = request.param
    return _native.Runtime(threads=threads, isa=isa)


@pytest.fixture
def random(request: pytest.FixtureRequest) -> torch.Generator:
    """Other numbers for each test, the same in each run."""
    return torch.Generator().manual_seed(crc32(request.node.name.encode()))


# ---------------------------------------------------------------- codecs


CODECS = {
    "f32": lambda width, rotary: TensorCodec(Raw(width, F32)),
    "bf16": lambda width, rotary: TensorCodec(Raw(width, BF16)),
    "kv_fp8": lambda width, rotary: TensorCodec(KvFp8(width, rotary)),
    "index_fp4": lambda width, rotary: TensorCodec(IndexFp4(width)),
    "index_fp8": lambda width, rotary: TensorCodec(IndexFp8(width)),
}


def encode(runtime: _native.Runtime, codec: str, entries: Tensor, rotary: int) -> Tensor:
    out = torch.full((len(entries), _native.entry_bytes(codec, entries.shape[1], rotary)), 0xAA, dtype=torch.uint8)
    _native.encode_entries(runtime, codec, entries, rotary, out)
    return out


def decode(runtime: _native.Runtime, codec: str, rows: Tensor, width: int, rotary: int) -> Tensor:
    out = torch.empty(len(rows), width)
    _native.decode_entries(runtime, codec, rows, rotary, out)
    return out


def wide(random: torch.Generator, *shape: int) -> Tensor:
    """Numbers of very different magnitudes, with zeros of both signs, ties and subnormal codes among them."""
    x = torch.randn(shape, generator=random) * torch.exp2(torch.randint(-30, 12, shape, generator=random).float())
    x = torch.where(torch.rand(shape, generator=random) < 0.1, torch.zeros(()).copysign(x), x)
    ties = torch.randint(-40, 40, shape, generator=random) * 0.25
    return torch.where(torch.rand(shape, generator=random) < 0.3, ties, x)


@pytest.mark.parametrize(("width", "rotary"), [(512, 64), (128, 64), (64, 16), (100, 36), (34, 7), (70, 70), (2, 0)])
@pytest.mark.parametrize("codec", list(CODECS))
def test_codecs(runtime: _native.Runtime, random: torch.Generator, codec: str, width: int, rotary: int) -> None:
    known = CODECS[codec](width, rotary)
    assert _native.entry_bytes(codec, width, rotary) == known.nbytes
    x = wide(random, 60, width)
    x[0], x[1], x[2, 0], x[3, 0] = 0, 1e-42, 3.4e38, -1e-45
    rows = encode(runtime, codec, x, rotary)
    assert torch.equal(rows, known.encode(x))
    assert torch.equal(decode(runtime, codec, rows, width, rotary), known.decode(rows, torch.float32))


@pytest.mark.parametrize("codec", list(CODECS))
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_codecs_show_what_is_not_finite(
    runtime: _native.Runtime, random: torch.Generator, codec: str, value: float
) -> None:
    x = torch.randn(3, 128, generator=random)
    x[1, 7] = value
    found = decode(runtime, codec, encode(runtime, codec, x, 64), 128, 64)
    known = CODECS[codec](128, 64)
    wanted = known.decode(known.encode(x), torch.float32)
    assert torch.equal(found.isnan(), wanted.isnan()) and not found[1].isfinite().all()
    assert torch.equal(found.nan_to_num(nan=7.5), wanted.nan_to_num(nan=7.5))


@pytest.mark.parametrize("codec", ["kv_fp8", "index_fp4", "index_fp8"])
def test_every_byte_means_the_same(runtime: _native.Runtime, codec: str) -> None:
    """All codes, with all scales where a scale is a byte."""
    known = CODECS[codec](64, 0)
    codes = (torch.arange(256 * 4 * 64) % 256).to(torch.uint8).view(256 * 4, 64)
    scales = (torch.arange(256 * 4) // 4).to(torch.uint8).unsqueeze(1)
    rows = torch.zeros(256 * 4, known.nbytes, dtype=torch.uint8)
    if codec == "index_fp8":
        rows[:, :64], rows[:, 64:] = codes, torch.tensor([0.37]).view(torch.uint8)
    elif codec == "index_fp4":
        rows[:, :32], rows[:, 32:] = codes[:, :32] + torch.arange(1024).to(torch.uint8).unsqueeze(1) * 32, scales
    else:
        rows[:, :64], rows[:, 64:65] = codes, scales
    found, wanted = decode(runtime, codec, rows, 64, 0), known.decode(rows, torch.float32)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(nan=7.5), wanted.nan_to_num(nan=7.5))


def test_rounding_twice_is_rounding_once(runtime: _native.Runtime, random: torch.Generator) -> None:
    x = wide(random, 40, 128)
    for codec in CODECS:
        once = decode(runtime, codec, encode(runtime, codec, x, 64), 128, 64)
        twice = decode(runtime, codec, encode(runtime, codec, once, 64), 128, 64)
        if codec != "index_fp8":  # its scale is no power of two
            assert torch.equal(twice, once), codec


# ---------------------------------------------------------------- compressors


def frequencies(half: int) -> Tensor:
    return 160000.0 ** (-torch.arange(half, dtype=torch.float32) / half)


class Job:
    """Rows of positions 0 and on, and one compressor's constants."""

    def __init__(self, random: torch.Generator, length: int, ratio: int, width: int, half: int) -> None:
        columns = width * (2 if ratio == 4 else 1)
        self.kv = torch.randn(length, columns, generator=random)
        self.gate = torch.randn(length, columns, generator=random) * 3
        self.norm = torch.randn(width, generator=random)
        self.frequencies = frequencies(half)
        self.ratio, self.width, self.length = ratio, width, length

    def native(
        self, runtime: _native.Runtime, first: int, last: int, finish: str = "plain", codec: str = "f32", start: int = 0
    ) -> Tensor:
        """Entries [first, last) as bytes, from the rows of positions `start` and on."""
        size = _native.entry_bytes(codec, self.width, 2 * len(self.frequencies))
        out = torch.zeros(last - first, size, dtype=torch.uint8)
        rows = self.kv[start:].contiguous(), self.gate[start:].contiguous()
        where = start, first, last, self.ratio, self.ratio == 4
        constants = self.norm, EPS, self.frequencies
        _native.compress(runtime, None, None, *rows, *where, *constants, finish, codec, out)
        return out

    def reference(self) -> Tensor:
        rotation = Rotation(self.frequencies)
        return reference.compress(CompressInput(self.kv, self.gate, 0, 0, self.ratio, self.norm, EPS, rotation))


SHAPES = [(4, 64, 8), (4, 512, 32), (4, 100, 11), (4, 16, 8), (128, 64, 8), (128, 512, 32), (128, 70, 3)]


@pytest.mark.parametrize(("ratio", "width", "half"), SHAPES)
@pytest.mark.parametrize("windows", [0, 1, 2, 5])
def test_compress(
    runtime: _native.Runtime, random: torch.Generator, ratio: int, width: int, half: int, windows: int
) -> None:
    job = Job(random, windows * ratio + 3, ratio, width, half)
    entries = job.native(runtime, 0, windows).view(torch.float32)
    torch.testing.assert_close(entries, job.reference(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("finish", "codecs"), [("kv", ["f32", "bf16", "kv_fp8"]), ("index", ["bf16", "index_fp4"])])
@pytest.mark.parametrize("ratio", [4, 128])
def test_finish_and_codec(
    runtime: _native.Runtime, random: torch.Generator, finish: str, codecs: list[str], ratio: int
) -> None:
    job = Job(random, 6 * ratio, ratio, 128, 32)
    plain = job.native(runtime, 0, 6).view(torch.float32)
    rounded = reference.quantize_kv(plain, 64) if finish == "kv" else reference.quantize_index(plain)
    for codec in codecs:
        known = CODECS[codec](128, 64)
        assert torch.equal(job.native(runtime, 0, 6, finish, codec), known.encode(rounded))


@pytest.mark.parametrize("ratio", [4, 128])
@pytest.mark.parametrize("width", [64, 100])
def test_every_entry_is_the_same_in_every_company(
    runtime: _native.Runtime, random: torch.Generator, ratio: int, width: int
) -> None:
    windows = 200 if ratio == 4 else 9
    job = Job(random, windows * ratio, ratio, width, 8)
    whole = job.native(runtime, 0, windows, "kv", "bf16")
    for first in (0, 1, 2, windows // 2, windows - 1):
        for count in (0, 1, 2, 3, 17, 100, windows):
            last = min(windows, first + count)
            start = max(0, first - 1) * ratio
            assert torch.equal(job.native(runtime, first, last, "kv", "bf16", start), whole[first:last])
    for isa, threads in ((runtime.isa, 3), (runtime.isa, 1)):
        assert torch.equal(job.native(_native.Runtime(threads=threads, isa=isa), 0, windows, "kv", "bf16"), whole)


@pytest.mark.parametrize(("ratio", "slots"), [(4, 8), (128, 128)])
@pytest.mark.parametrize("length", [0, 5, 127, 128, 130, 251])
def test_past_rows_are_read_from_the_ring(
    runtime: _native.Runtime, random: torch.Generator, ratio: int, slots: int, length: int
) -> None:
    job = Job(random, 400, ratio, 64, 8)
    first, last = length // ratio, 400 // ratio
    rings = torch.full((2, slots, job.kv.shape[1]), float("nan"))
    for position in range(max(0, length - slots), length):
        rings[0, position % slots], rings[1, position % slots] = job.kv[position], job.gate[position]
    out = torch.zeros(last - first, 64 * 4, dtype=torch.uint8)
    fresh = job.kv[length:].contiguous(), job.gate[length:].contiguous()
    where = length, first, last, ratio, ratio == 4
    _native.compress(runtime, rings[0], rings[1], *fresh, *where, job.norm, EPS, job.frequencies, "plain", "f32", out)
    assert torch.equal(out, job.native(runtime, 0, last)[first:])


def test_compress_names_what_is_wrong(runtime: _native.Runtime, random: torch.Generator) -> None:
    job = Job(random, 16, 4, 64, 8)
    with pytest.raises(ValueError, match=r"kv has rows of positions \[4, 16\); the entries need \[0, 16\)"):
        job.native(runtime, 1, 4, start=4)
    with pytest.raises(ValueError, match=r"kv has rows of positions \[0, 16\); the entries need \[0, 20\)"):
        job.native(runtime, 0, 5)
    with pytest.raises(ValueError, match='finish "other"'):
        job.native(runtime, 0, 1, "other")
    with pytest.raises(ValueError, match='codec "other"'):
        job.native(runtime, 0, 1, "plain", "other")
    job.norm = torch.zeros(63)
    with pytest.raises(ValueError, match="both must have 126"):
        job.native(runtime, 0, 1)


@pytest.mark.parametrize(("n", "width", "ratio"), [(0, 8, 4), (1, 128, 4), (300, 1024, 4), (150, 70, 128)])
@pytest.mark.parametrize("position", [0, 1, 126, 2**20 + 3])
def test_add_position_bias(
    runtime: _native.Runtime, random: torch.Generator, n: int, width: int, ratio: int, position: int
) -> None:
    gate, ape = torch.randn(n, width, generator=random), torch.randn(ratio, width, generator=random)
    out = gate.clone()
    _native.add_position_bias(runtime, out, ape, position)
    assert torch.equal(out, gate + ape[(torch.arange(n) + position) % ratio])


@pytest.mark.parametrize("ratio", [4, 128])
def test_backend_compress(random: torch.Generator, ratio: int) -> None:
    job = Job(random, 3 * ratio + 2, ratio, 64, 8)
    for first_entry, skipped in ((0, 0), (1, 0 if ratio == 4 else 1), (3, 2 if ratio == 4 else 3)):
        rows = job.kv[skipped * ratio :], job.gate[skipped * ratio :]
        rotation = Rotation(job.frequencies)
        x = CompressInput(*rows, skipped * ratio, first_entry, ratio, job.norm, EPS, rotation)
        found = compress(x)
        assert found.shape == (3 - first_entry, 64)
        torch.testing.assert_close(found, reference.compress(x), rtol=1e-5, atol=1e-5)
