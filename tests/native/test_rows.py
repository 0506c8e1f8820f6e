"""The native operations on single rows, on every instruction set, against the reference and alone against a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from zlib import crc32

import pytest
import torch
from helpers.formats import fake_quantize_fp8
from helpers.scratch import assert_scratch_settles
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops import rows as cpu
from foveal.ops import HyperWeights, Rotation, reference

EPS = 1e-6
COUNTS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 100, 513]


@pytest.fixture(params=[(isa, threads) for isa in _native.available_isas() for threads in (1, 2)], ids=str)
def runtime(request: pytest.FixtureRequest) -> _native.Runtime:
    isa, threads = request.param
    return _native.Runtime(threads=threads, isa=isa)


@pytest.fixture
def random(request: pytest.FixtureRequest) -> torch.Generator:
    """Other numbers for each test, the same in each run."""
    return torch.Generator().manual_seed(crc32(request.node.name.encode()))


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but for which NaN it is."""
    return torch.equal(torch.nan_to_num(a, nan=12345.0), torch.nan_to_num(b, nan=12345.0)) and torch.equal(
        a.isnan(), b.isnan()
    )


def wide(random: torch.Generator, *shape: int) -> Tensor:
    """Numbers of very different magnitudes, with zeros of both signs, ties and the smallest ones among them."""
    x = torch.randn(shape, generator=random) * torch.exp2(torch.randint(-30, 12, shape, generator=random).float())
    x = torch.where(torch.rand(shape, generator=random) < 0.1, torch.zeros(()), x)
    ties = torch.randint(-40, 40, shape, generator=random) * 0.25
    return torch.where(torch.rand(shape, generator=random) < 0.3, ties, x)


# ---------------------------------------------------------------- embedding, norm


@pytest.mark.parametrize(("n", "streams", "d"), [(0, 4, 32), (1, 4, 256), (7, 1, 5), (300, 4, 384), (5, 3, 33)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_embed(
    runtime: _native.Runtime, random: torch.Generator, n: int, streams: int, d: int, dtype: torch.dtype
) -> None:
    table = torch.randn(50, d, generator=random).to(dtype)
    tokens = torch.randint(50, (n,), generator=random)
    out = torch.empty(n, streams, d)
    data = table.view(torch.uint16) if dtype == torch.bfloat16 else table
    matrix = _native.Matrix("bf16" if dtype == torch.bfloat16 else "f32", 50, d, data)
    _native.embed(runtime, matrix, tokens, out)
    assert torch.equal(out, table[tokens].float().unsqueeze(1).expand(n, streams, d))


def test_embed_refuses_unknown_tokens(runtime: _native.Runtime) -> None:
    matrix = _native.Matrix("f32", 4, 2, torch.zeros(4, 2))
    for token in (-1, 4):
        with pytest.raises(ValueError, match=f"token {token} is not among the 4"):
            _native.embed(runtime, matrix, torch.tensor([token]), torch.empty(1, 1, 2))


@pytest.mark.parametrize(("n", "width"), [(0, 8), (1, 1), (3, 5), (2, 16), (65, 100), (129, 384), (40, 4097)])
@pytest.mark.parametrize("weighted", [False, True])
def test_rms_norm(runtime: _native.Runtime, random: torch.Generator, n: int, width: int, weighted: bool) -> None:
    x = torch.randn(n, width, generator=random) * 3
    weight = torch.randn(width, generator=random) if weighted else None
    out = torch.empty_like(x)
    _native.rms_norm(runtime, x, weight, EPS, out)
    torch.testing.assert_close(out, reference.rms_norm(x, weight, EPS), rtol=2e-6, atol=1e-7)


# ---------------------------------------------------------------- rotation


def frequencies(half: int) -> Tensor:
    return 10000.0 ** (-torch.arange(half, dtype=torch.float32) / max(half, 1))


@pytest.mark.parametrize(("heads", "c", "half"), [(1, 2, 1), (3, 20, 5), (4, 64, 8), (2, 96, 32), (1, 40, 20)])
@pytest.mark.parametrize("inverse", [False, True])
def test_rotate(
    runtime: _native.Runtime, random: torch.Generator, heads: int, c: int, half: int, inverse: bool
) -> None:
    positions = torch.cat([torch.arange(9), torch.randint(2**20, (60,), generator=random), torch.tensor([2**20])])
    x = torch.randn(len(positions), heads, c, generator=random)
    out = x.clone()
    _native.rotate(runtime, out, positions, frequencies(half), inverse)
    expected = reference.rotate(x, positions, Rotation(frequencies(half)), inverse=inverse)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)
    assert torch.equal(out[..., : c - 2 * half], x[..., : c - 2 * half])
    # Sines and cosines themselves, of the same fp32 angles in double precision.
    ones = torch.tensor([1.0, 0.0]).repeat(len(positions), 1, half)
    _native.rotate(runtime, ones, positions, frequencies(half), inverse)
    angles = torch.outer(positions.float(), frequencies(half)).double() * (-1 if inverse else 1)
    exact = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
    assert (ones[:, 0].double() - exact).abs().max() < 1.3e-7


def test_nothing_rotates_without_frequencies(runtime: _native.Runtime) -> None:
    x = torch.ones(3, 2, 9)
    _native.rotate(runtime, x, torch.arange(3), torch.zeros(0), False)
    assert torch.equal(x, torch.ones(3, 2, 9))


def test_rotation_back_and_forth(runtime: _native.Runtime, random: torch.Generator) -> None:
    x = torch.randn(33, 2, 70, generator=random)
    positions = torch.randint(2**20, (33,), generator=random)
    out = x.clone()
    _native.rotate(runtime, out, positions, frequencies(16), False)
    _native.rotate(runtime, out, positions, frequencies(16), True)
    torch.testing.assert_close(out, x, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("heads", "c", "half"), [(1, 64, 8), (5, 128, 32), (64, 32, 16), (3, 16, 4), (2, 256, 32)])
@pytest.mark.parametrize("eps", [None, EPS])
@pytest.mark.parametrize("quantize", [False, True])
def test_finish_query(
    runtime: _native.Runtime,
    random: torch.Generator,
    heads: int,
    c: int,
    half: int,
    eps: float | None,
    quantize: bool,
) -> None:
    x = torch.randn(21, heads, c, generator=random)
    positions = torch.randint(2**20, (21,), generator=random)
    out = x.clone()
    _native.finish_query(runtime, out, positions, frequencies(half), -1.0 if eps is None else eps, False)
    expected = reference.rotate(
        x if eps is None else reference.rms_norm(x, None, eps), positions, Rotation(frequencies(half))
    )
    torch.testing.assert_close(out, expected, rtol=2e-6, atol=3e-6)
    if quantize:  # rounding is not continuous: compare with the rounding of what was found before it
        rounded = x.clone()
        _native.finish_query(runtime, rounded, positions, frequencies(half), -1.0 if eps is None else eps, True)
        assert torch.equal(rounded, reference.quantize_index(out))


@pytest.mark.parametrize(("n", "c", "half"), [(1, 64, 8), (40, 512, 32), (9, 70, 3), (300, 96, 16)])
@pytest.mark.parametrize("quantize", [False, True])
def test_finish_kv(
    runtime: _native.Runtime, random: torch.Generator, n: int, c: int, half: int, quantize: bool
) -> None:
    x, weight = torch.randn(n, c, generator=random), torch.randn(c, generator=random)
    positions = torch.randint(2**20, (n,), generator=random)
    rows = torch.empty(n, c)
    _native.finish_kv(runtime, x, positions, frequencies(half), weight, EPS, False, rows)
    expected = reference.rotate(reference.rms_norm(x, weight, EPS), positions, Rotation(frequencies(half)))
    torch.testing.assert_close(rows, expected, rtol=2e-6, atol=5e-6)
    if quantize:
        rows = reference.quantize_kv(rows, 2 * half)
        rounded = torch.empty(n, c)
        _native.finish_kv(runtime, x, positions, frequencies(half), weight, EPS, True, rounded)
        assert torch.equal(rounded, rows)
    stored = torch.empty(n, c, dtype=torch.bfloat16)
    _native.finish_kv(runtime, x, positions, frequencies(half), weight, EPS, quantize, stored)
    assert torch.equal(stored, rows.to(torch.bfloat16))


# ---------------------------------------------------------------- run-time quantisation


def special(x: Tensor) -> Tensor:
    """The same with a row of zeros, and with infinities, NaN, the largest and the smallest numbers in blocks."""
    x = x.clone()
    x[0] = 0
    for row, value in enumerate([float("inf"), float("nan"), -float("inf"), 3.4e38, 1e-45, -1e-40, 448.0, 464.0]):
        x[1 + row, row % x.shape[1]] = value
    return x


@pytest.mark.parametrize(("c", "rotary"), [(512, 64), (64, 16), (100, 36), (70, 70), (33, 0), (200, 7)])
def test_quantize_kv(runtime: _native.Runtime, random: torch.Generator, c: int, rotary: int) -> None:
    x = special(wide(random, 50, c))
    out = x.clone()
    _native.quantize_kv(runtime, out, rotary)
    # The reference's slice from -0 would take every channel.
    assert same(out, reference.quantize_kv(x, rotary) if rotary else fake_quantize_fp8(x, 64))


@pytest.mark.parametrize("width", [2, 4, 16, 32, 64, 128, 256])
def test_quantize_index(runtime: _native.Runtime, random: torch.Generator, width: int) -> None:
    x = special(wide(random, 80, width)) if width > 8 else wide(random, 80, width)
    out = x.clone()
    _native.quantize_index(runtime, out)
    assert same(out, reference.quantize_index(x))


def test_quantize_index_wants_a_power_of_two(runtime: _native.Runtime) -> None:
    with pytest.raises(ValueError, match="power of two"):
        _native.quantize_index(runtime, torch.zeros(2, 48))


@pytest.mark.parametrize("width", [1, 100, 128, 384, 1000])
def test_quantize_activations(runtime: _native.Runtime, random: torch.Generator, width: int) -> None:
    x = special(wide(random, 50, width)) if width > 8 else wide(random, 50, width)
    out = x.clone()
    _native.quantize_activations(runtime, out)
    assert same(out, fake_quantize_fp8(x, 128))


# ---------------------------------------------------------------- hyper-connections


def hyper(random: torch.Generator, streams: int, d: int, *, head: bool = False) -> HyperWeights:
    rows = streams if head else (2 + streams) * streams
    fn = torch.randn(rows, streams * d, generator=random) / (streams * d) ** 0.5
    base, scale = torch.randn(rows, generator=random), torch.rand(1 if head else 3, generator=random) + 0.5
    return HyperWeights(fn, base, scale, 20, EPS, EPS)


def native_pre(
    runtime: _native.Runtime, streams: Tensor, w: HyperWeights, norm: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    n, s, d = streams.shape
    x, post, comb = torch.empty(n, d), torch.empty(n, s), torch.empty(n, s, s)
    constants = w.sinkhorn_iters, w.eps, w.norm_eps
    _native.hyper_pre(runtime, streams, w.fn, w.base, w.scale, *constants, norm, x, post, comb)
    return x, post, comb


def native_head(runtime: _native.Runtime, streams: Tensor, w: HyperWeights, norm: Tensor | None = None) -> Tensor:
    x = torch.empty(streams.shape[0], streams.shape[2])
    _native.hyper_head(runtime, streams, w.fn, w.base, w.scale, w.eps, w.norm_eps, norm, x)
    return x


SHAPES = [
    (0, 4, 64),
    (1, 4, 256),
    (5, 4, 384),
    (70, 4, 100),
    (3, 1, 33),
    (6, 2, 48),
    (21, 3, 70),
    (2, 8, 64),
    (2, 4, 1500),
]


@pytest.mark.parametrize(("n", "count", "d"), SHAPES)
def test_hyper_pre(runtime: _native.Runtime, random: torch.Generator, n: int, count: int, d: int) -> None:
    streams, weights = torch.randn(n, count, d, generator=random) * 2, hyper(random, count, d)
    x, post, comb = native_pre(runtime, streams, weights)
    expected = reference.hyper_pre(streams, weights)
    for found, wanted in zip((x, post, comb), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-6)
    if n:
        torch.testing.assert_close(comb.sum(1), torch.ones(n, count), rtol=0, atol=1e-4)
    norm = torch.randn(d, generator=random)
    normed, *others = native_pre(runtime, streams, weights, norm)
    torch.testing.assert_close(normed, reference.rms_norm(x, norm, EPS), rtol=2e-6, atol=1e-6)
    assert torch.equal(others[0], post) and torch.equal(others[1], comb)


@pytest.mark.parametrize(("n", "count", "d"), SHAPES)
def test_hyper_head(runtime: _native.Runtime, random: torch.Generator, n: int, count: int, d: int) -> None:
    streams, weights = torch.randn(n, count, d, generator=random) * 2, hyper(random, count, d, head=True)
    x = native_head(runtime, streams, weights)
    torch.testing.assert_close(x, reference.hyper_head(streams, weights), rtol=1e-5, atol=5e-6)
    norm = torch.randn(d, generator=random)
    normed = native_head(runtime, streams, weights, norm)
    torch.testing.assert_close(normed, reference.rms_norm(x, norm, EPS), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "count", "d"), SHAPES)
def test_hyper_post(runtime: _native.Runtime, random: torch.Generator, n: int, count: int, d: int) -> None:
    streams, out = torch.randn(n, count, d, generator=random), torch.randn(n, d, generator=random)
    post, comb = torch.rand(n, count, generator=random) * 2, torch.rand(n, count, count, generator=random)
    after = streams.clone()
    _native.hyper_post(runtime, out, post, comb, after)
    torch.testing.assert_close(after, reference.hyper_post(out, streams, post, comb), rtol=2e-6, atol=2e-6)


def test_wrong_shapes_are_named(runtime: _native.Runtime, random: torch.Generator) -> None:
    weights = hyper(random, 4, 16)
    with pytest.raises(ValueError, match=r"fn has the shape \[ 24 64 \]; it must be \[ 24 68 \]"):
        native_pre(runtime, torch.zeros(2, 4, 17), weights)
    with pytest.raises(ValueError, match="post has the shape"):
        zeros = torch.zeros(2, 3), torch.zeros(2, 4, 4), torch.zeros(2, 4, 8)
        _native.hyper_post(runtime, torch.zeros(2, 8), *zeros)
    with pytest.raises(ValueError, match="40 rotary channels do not fit into 32"):
        _native.rotate(runtime, torch.zeros(1, 1, 32), torch.zeros(1, dtype=torch.int64), torch.zeros(20), False)
    with pytest.raises(TypeError):
        _native.quantize_kv(runtime, torch.zeros(4, 8, dtype=torch.float64), 2)
    with pytest.raises(TypeError):
        _native.quantize_kv(runtime, torch.zeros(4, 8).T, 2)


# ---------------------------------------------------------------- the same bits in every company


def _pre(runtime: _native.Runtime, x: Tensor, w: HyperWeights, head: HyperWeights) -> list[Tensor]:
    norm = torch.linspace(0.5, 2, x.shape[2])
    pre = native_pre(runtime, x, w, norm)
    after = x.clone()
    _native.hyper_post(runtime, pre[0], pre[1], pre[2], after)
    return [*pre, after, native_head(runtime, x, head, norm)]


def _rows(runtime: _native.Runtime, x: Tensor, positions: Tensor) -> list[Tensor]:
    normed, query, index = torch.empty_like(x), x.unsqueeze(1).clone(), x.unsqueeze(1).clone()
    _native.rms_norm(runtime, x, None, EPS, normed)
    _native.finish_query(runtime, query, positions, frequencies(16), EPS, False)
    _native.finish_query(runtime, index, positions, frequencies(16), EPS, True)
    kv = torch.empty(x.shape, dtype=torch.bfloat16)
    _native.finish_kv(runtime, x, positions, frequencies(16), torch.ones(x.shape[1]), EPS, True, kv)
    return [normed, query, index, kv]


def _assert_alone_as_in_company(compute: Callable[[slice], list[Tensor]], total: int) -> None:
    """Whatever part of the tokens is computed together, and alone, each gets what it got among all."""
    whole = compute(slice(0, total))
    for count in COUNTS:
        first = (total - count) // 2
        part = compute(slice(first, first + count))
        assert all(torch.equal(a, b[first : first + count]) for a, b in zip(part, whole, strict=True)), count


@pytest.mark.parametrize(("count", "d"), [(4, 256), (4, 1500), (2, 40)])
def test_hyper_batch_invariance(runtime: _native.Runtime, random: torch.Generator, count: int, d: int) -> None:
    total = 513 if d < 1000 else 40
    streams = torch.randn(total, count, d, generator=random)
    weights, head = hyper(random, count, d), hyper(random, count, d, head=True)

    def compute(part: slice) -> list[Tensor]:
        return _pre(runtime, streams[part].contiguous(), weights, head)

    if total == 513:
        _assert_alone_as_in_company(compute, total)
        return
    whole = compute(slice(0, total))
    for size in (1, 2, 3, 5, 15, 16, 17):
        part = compute(slice(4, 4 + size))
        assert all(torch.equal(a, b[4 : 4 + size]) for a, b in zip(part, whole, strict=True)), size


def test_row_batch_invariance(runtime: _native.Runtime, random: torch.Generator) -> None:
    x = torch.randn(513, 256, generator=random)
    positions = torch.randint(2**20, (513,), generator=random)
    _assert_alone_as_in_company(lambda part: _rows(runtime, x[part].contiguous(), positions[part].contiguous()), 513)


@pytest.mark.parametrize("isa", _native.available_isas())
def test_threads_change_nothing(isa: str, random: torch.Generator) -> None:
    streams, weights = torch.randn(37, 4, 1000, generator=random), hyper(random, 4, 1000)
    head = hyper(random, 4, 1000, head=True)
    one, *others = [_pre(_native.Runtime(threads=threads, isa=isa), streams, weights, head) for threads in (1, 2, 3, 7)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_task_is_done_once_whichever_threads_come_in_time(random: torch.Generator) -> None:
    x, runtime = torch.randn(3, 20000, generator=random), _native.Runtime(threads=8)
    expected = torch.empty_like(x)
    _native.rms_norm(_native.Runtime(threads=1), x, None, EPS, expected)
    for turn in range(2000):
        if turn % 100 == 0:
            time.sleep(2e-3)  # longer than threads look out for work: some or all of them sleep
        out = torch.full_like(x, torch.nan)
        _native.rms_norm(runtime, x, None, EPS, out)
        assert torch.equal(out, expected), turn


def test_no_memory_is_asked_for_in_the_steady_state(runtime: _native.Runtime, random: torch.Generator) -> None:
    streams, weights = torch.randn(64, 4, 512, generator=random), hyper(random, 4, 512)
    head = hyper(random, 4, 512, head=True)
    assert_scratch_settles(runtime, lambda: [_pre(runtime, streams, weights, head) for _ in range(4)])


# ---------------------------------------------------------------- the backend's functions


def test_backend_functions(random: torch.Generator) -> None:
    x = torch.randn(9, 3, 64, generator=random)
    positions = torch.randint(2**20, (9,), generator=random)
    rotation = Rotation(frequencies(16))
    for inverse in (False, True):
        expected = reference.rotate(x, positions, rotation, inverse=inverse)
        torch.testing.assert_close(cpu.rotate(x, positions, rotation, inverse=inverse), expected, rtol=0, atol=2e-6)
    flat = cpu.rotate(x[:, 0], positions, rotation)  # a strided view without heads
    torch.testing.assert_close(flat, reference.rotate(x[:, 0], positions, rotation), rtol=0, atol=2e-6)
    weight = torch.randn(64, generator=random, requires_grad=True)
    torch.testing.assert_close(cpu.rms_norm(x, weight, EPS), reference.rms_norm(x, weight.detach(), EPS))
    assert torch.equal(cpu.quantize_kv(x, 16), reference.quantize_kv(x, 16))
    assert torch.equal(cpu.quantize_index(x), reference.quantize_index(x))


@pytest.mark.parametrize("eps", [None, EPS])
def test_backend_query(random: torch.Generator, eps: float | None) -> None:
    latent, weight = torch.randn(9, 48, generator=random), torch.randn(3 * 64, 48, generator=random)
    positions, rotation = torch.randint(2**20, (9,), generator=random), Rotation(frequencies(16))
    found = cpu.query(latent, weight, 3, positions, rotation, eps)
    expected = reference.query(latent, weight, 3, positions, rotation, eps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_backend_hyper_connections(random: torch.Generator) -> None:
    streams, out = torch.randn(9, 4, 64, generator=random), torch.randn(9, 64, generator=random)
    weights, head = hyper(random, 4, 64), hyper(random, 4, 64, head=True)
    pre = cpu.hyper_pre(streams, weights)
    for found, wanted in zip(pre, reference.hyper_pre(streams, weights), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(cpu.hyper_post(out, streams, *pre[1:]), reference.hyper_post(out, streams, *pre[1:]))
    torch.testing.assert_close(cpu.hyper_head(streams, head), reference.hyper_head(streams, head), rtol=1e-5, atol=5e-6)
