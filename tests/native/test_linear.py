"""The native products with weights against the reference, on every instruction set, and bit-identical in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.formats import Fp4Weight, Fp8Weight, Weight, dequantize, fake_quantize_fp8, quantize_fp4, quantize_fp8
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops import dense as native
from foveal.ops import ExpertWeights, RouteInput, reference

ISAS = _native.available_isas()
FORMATS = ("f32", "bf16", "fp8", "fp4")
# Rows, columns: tails of every kind, several scale blocks, one row, one step.
SHAPES = ((1, 32), (3, 64), (7, 96), (129, 160), (64, 288), (260, 416), (40, 2080))
COUNTS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 100, 513)


def make_weight(kind: str, rows: int, columns: int, generator: torch.Generator) -> Weight:
    # Rows of very different size, so that scales differ from block to block and from row to row.
    spread = torch.exp2(torch.randint(-6, 7, (rows, 1), generator=generator).float())
    w = torch.randn(rows, columns, generator=generator) * spread * columns**-0.5
    w[:, columns // 2 :] *= 8.0
    if kind == "fp8":
        return quantize_fp8(w)
    if kind == "fp4":
        return quantize_fp4(w)
    return w.bfloat16() if kind == "bf16" else w


def make_input(n: int, width: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, width, generator=generator)
    x[:, ::7] *= 30.0
    if n and width > 3:
        x[0, 3] = 0.0
    return x


def rng(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(31**i * s for i, s in enumerate(seed)))


def run_linear(
    runtime: _native.Runtime, x: Tensor, weights: Sequence[Weight], simulate: Sequence[bool]
) -> list[Tensor]:
    out = [torch.full((len(x), weight.shape[0]), float("nan")) for weight in weights]
    _native.linear(runtime, x.contiguous(), [native.native_matrix(w) for w in weights], list(simulate), out)
    return out


def assert_close(y: Tensor, x: Tensor, weight: Tensor, bound: float) -> None:
    """|y - x @ weight.T| against the sum of the products' magnitudes: the error of every summand is relative to it."""
    exact = x.double() @ weight.double().T
    room = x.double().abs() @ weight.double().abs().T
    assert y.isfinite().all()
    assert bool(((y - exact).abs() <= bound * room + 1e-30).all()), float(((y - exact).abs() / room).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("exact", [False, True])
def test_linear_agrees_with_the_reference(isa: str, kind: str, exact: bool) -> None:
    runtime = _native.Runtime(threads=2, isa=isa, exact=exact)
    for seed, (rows, columns) in enumerate(SHAPES):
        for n in (0, 1, 2, 3, 4, 6, 37):
            generator = rng(seed, n)
            weight, x = make_weight(kind, rows, columns, generator), make_input(n, columns, generator)
            simulated, plain = run_linear(runtime, x, [weight, weight], [True, False])
            values = dequantize(weight, torch.float32)
            # fp32 sums of at most 2080 terms; BF16 rounds each activation to 2^-9, two terms to 2^-17 or better.
            sums = 2e-6
            assert_close(simulated, fake_quantize_fp8(x), values, sums)
            assert_close(plain, x, values, sums if kind == "f32" else sums + (2.0**-16 if exact else 2.0**-8))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("shape", [(129, 160), (24, 640)])
def test_a_token_does_not_feel_its_batch(isa: str, kind: str, exact: bool, shape: tuple[int, int]) -> None:
    generator = rng(5, len(kind), exact)
    weight = make_weight(kind, *shape, generator)
    x = make_input(max(COUNTS), shape[1], generator)
    one, two = (_native.Runtime(threads=t, isa=isa, exact=exact) for t in (1, 2))
    whole = run_linear(two, x, [weight], [kind == "fp8"])[0]
    for n in COUNTS:
        start = len(x) - n
        part = run_linear(one, x[start:], [weight], [kind == "fp8"])[0]
        assert torch.equal(part, whole[start:]), n
    alone = torch.cat([run_linear(one, x[i : i + 1], [weight], [kind == "fp8"])[0] for i in range(40)])
    assert torch.equal(alone, whole[:40])


@pytest.mark.parametrize("isa", ISAS)
def test_products_of_one_input_do_not_disturb_each_other(isa: str) -> None:
    generator = rng(6)
    kinds = [(kind, simulate) for kind in FORMATS for simulate in (False, True)] * 3
    weights = [make_weight(kind, 8 + 5 * i, 192, generator) for i, (kind, _) in enumerate(kinds)]
    for n in (1, 70):
        x = make_input(n, 192, generator)
        runtime = _native.Runtime(threads=2, isa=isa, exact=True)
        together = run_linear(runtime, x, weights, [simulate for _, simulate in kinds])
        for weight, (_, simulate), y in zip(weights, kinds, together, strict=True):
            assert torch.equal(y, run_linear(runtime, x, [weight], [simulate])[0])


@pytest.mark.parametrize("isa", ISAS)
def test_every_code_and_many_scales_are_exact(isa: str) -> None:
    """One activation of 1 at a time: each product is the weight itself."""
    runtime = _native.Runtime(threads=1, isa=isa, exact=False)
    codes = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    codes[codes & 127 == 127] = 0  # NaN is its own test
    scale = torch.tensor([[127, 90], [127, 90]], dtype=torch.uint8)[:1]
    fp8 = Fp8Weight(codes.view(torch.float8_e4m3fn), scale)
    packed = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    scales = (torch.arange(16, dtype=torch.uint8) * 9 + 60).repeat(3, 1) + torch.tensor(
        [[0], [1], [2]], dtype=torch.uint8
    )
    fp4 = Fp4Weight(packed, scales)
    for weight in (fp8, fp4):
        y = run_linear(runtime, torch.eye(weight.shape[1]), [weight], [False])[0]
        assert torch.equal(y.T, dequantize(weight))


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_finite_stays_in_its_row(isa: str) -> None:
    runtime = _native.Runtime(threads=1, isa=isa, exact=True)
    generator = rng(8)
    weight = make_weight("fp8", 16, 160, generator)
    assert isinstance(weight, Fp8Weight)
    codes = weight.codes.view(torch.uint8).clone()
    codes[5, 130] = 0x7F
    broken = Fp8Weight(codes.view(torch.float8_e4m3fn), weight.scale)
    x = make_input(6, 160, generator)
    x[2, 7] = float("inf")
    y = run_linear(runtime, x, [broken], [True])[0]
    bad = y.isnan()
    assert bool(bad[:, 5].all()) and bool(bad[2].all())
    assert int(bad.sum()) == 6 + 16 - 1


@pytest.mark.parametrize("isa", ISAS)
def test_fp8_with_scales_that_are_no_powers_of_two(isa: str) -> None:
    generator = rng(9)
    runtime = _native.Runtime(threads=1, isa=isa, exact=True)
    x = make_input(3, 200, generator)
    for scale_dtype in ("float32", "ue8m0"):
        weight = quantize_fp8(torch.randn(70, 200, generator=generator), scale_dtype)
        weight = Fp8Weight(weight.codes, weight.scale.float())
        assert_close(run_linear(runtime, x, [weight], [False])[0], x, dequantize(weight), 2.0**-15)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("groups", "o", "width", "d"), [(1, 20, 96, 33), (2, 64, 128, 70), (3, 9, 224, 130)])
def test_grouped_output(isa: str, groups: int, o: int, width: int, d: int) -> None:
    generator = rng(10, groups)
    runtime = _native.Runtime(threads=2, isa=isa, exact=True)
    wo_a = make_weight("fp8", groups * o, width, generator)
    wo_b = quantize_fp4(torch.randn(d, groups * o, generator=generator)) if groups * o % 32 == 0 else None
    down = wo_b if wo_b is not None else make_weight("bf16", d, groups * o, generator)
    x = torch.randn(600, groups * 2, width // 2, generator=generator)
    flat = x.flatten(1)
    whole = torch.empty(600, d)
    a, b = native.native_matrix(wo_a), native.native_matrix(down)
    _native.grouped_output(runtime, flat, a, b, groups, False, whole)
    expected = reference.grouped_output(x, wo_a, down, groups, simulate=False)
    assert float((whole - expected).abs().max() / expected.abs().max()) < 2e-5
    for first, count in ((0, 1), (7, 4), (511, 17)):
        part = torch.empty(count, d)
        _native.grouped_output(runtime, flat[first : first + count].contiguous(), a, b, groups, False, part)
        assert torch.equal(part, whole[first : first + count])
    # Quantised in between: a latent at the edge of two codes may fall on either side.
    _native.grouped_output(runtime, flat, a, b, groups, True, whole)
    expected = reference.grouped_output(x, wo_a, down, groups, simulate=True)
    assert float((whole - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("experts", "active", "d"), [(4, 1, 48), (16, 2, 256), (33, 6, 300)])
def test_route(isa: str, experts: int, active: int, d: int) -> None:
    generator = rng(11, experts)
    runtime = _native.Runtime(threads=2, isa=isa)
    gate = torch.randn(experts, d, generator=generator) * d**-0.5
    gate[-1] = gate[0]  # a tie in every token
    bias = torch.rand(experts, generator=generator).round(decimals=1)
    bias[-1] = bias[0]
    table = torch.randint(experts, (50, active), generator=generator)
    tokens = torch.randint(50, (70,), generator=generator)
    y = torch.randn(70, d, generator=generator) * 4
    matrix = native.native_matrix(gate)

    def run(n: int, bias: Tensor | None, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.empty(n, active, dtype=torch.int32)
        weights, affinity = torch.empty(n, active), torch.empty(n, experts)
        _native.route(
            runtime, y[:n].contiguous(), matrix, bias, table, tokens[:n].contiguous(), 1.5, chosen, weights, affinity
        )
        return chosen.long(), weights, affinity

    for way in ({"bias": bias, "table": None}, {"bias": None, "table": None}, {"bias": None, "table": table}):
        chosen, weights, affinity = run(70, **way)
        wanted = reference.route(y, RouteInput(gate, way["bias"], way["table"], tokens, active, 1.5))
        torch.testing.assert_close(affinity, wanted[2], rtol=1e-5, atol=1e-6)
        # Affinities that differ only by rounding may change places: judge the choice by the kernel's own affinities.
        biased = affinity if way["bias"] is None else affinity + way["bias"]
        best = biased.sort(dim=-1, descending=True, stable=True).indices[:, :active]
        assert torch.equal(chosen, table[tokens] if way["table"] is not None else best)
        picked = affinity.gather(1, chosen)
        torch.testing.assert_close(weights, picked / picked.sum(-1, keepdim=True) * 1.5, rtol=1e-6, atol=0)
        assert torch.equal(run(1, **way)[2], affinity[:1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("kind", "d", "m", "experts", "active"),
    [
        ("fp4", 256, 256, 16, 2),
        ("fp4", 96, 160, 5, 3),
        ("fp8", 130, 70, 3, 1),
        ("bf16", 64, 128, 4, 4),
        ("f32", 33, 17, 2, 2),
    ],
)
def test_experts(isa: str, kind: str, d: int, m: int, experts: int, active: int) -> None:
    generator = rng(12, d)

    def stack(rows: int, columns: int, count: int, kind: str) -> list[Weight]:
        plain = [torch.randn(rows, columns, generator=generator) * columns**-0.5 * 2 for _ in range(count)]
        make = {"fp4": quantize_fp4, "fp8": quantize_fp8, "bf16": Tensor.bfloat16, "f32": Tensor.float}[kind]
        return [make(w) for w in plain]

    routed = ExpertWeights(*(stack(r, c, experts, kind) for r, c in ((m, d), (d, m), (m, d))), limit=1.5)
    other = "fp8" if kind == "fp4" else kind
    shared = ExpertWeights(*(stack(r, c, 1, other) for r, c in ((m, d), (d, m), (m, d))), limit=1.5)
    n = 1100
    y = torch.randn(n, d, generator=generator)
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:active] for _ in range(n)])
    chosen[:, 0] = torch.where(chosen[:, 0] == 1, 0, chosen[:, 0]) if active == 1 else chosen[:, 0]
    weights = torch.rand(n, active, generator=generator)
    matrices = [[native.native_matrix(w) for w in side] for side in (routed.w1, routed.w2, routed.w3)]
    own = [native.native_matrix(side[0]) for side in (shared.w1, shared.w2, shared.w3)]

    def run(rows: slice, threads: int, simulate: bool, exact: bool = True, with_shared: bool = True) -> Tensor:
        runtime = _native.Runtime(threads=threads, isa=isa, exact=exact)
        out = torch.full((len(y[rows]), d), float("nan"))
        picked = chosen[rows].int().contiguous()
        arguments = (y[rows].contiguous(), picked, weights[rows].contiguous(), *matrices, own if with_shared else [])
        _native.experts(runtime, *arguments, 1.5, simulate, out)
        return out

    everything = slice(0, n)
    whole = run(everything, 2, False)
    wanted = reference.experts(y, chosen, weights, routed, shared, simulate=False)
    assert float((whole - wanted).abs().max() / wanted.abs().max()) < 5e-5
    none = ExpertWeights([], [], [], 1.5)
    alone = reference.experts(y[:9], chosen[:9], weights[:9], routed, none, simulate=False)
    assert float((run(slice(0, 9), 1, False, with_shared=False) - alone).abs().max() / wanted.abs().max()) < 5e-5
    for first, count in ((0, 1), (5, 2), (9, 3), (12, 4), (20, 5), (1000, 17), (1023, 33)):
        assert torch.equal(run(slice(first, first + count), 1, False), whole[first : first + count])
    simulated = run(everything, 2, True)
    wanted = reference.experts(y, chosen, weights, routed, shared, simulate=True)
    assert float((simulated - wanted).norm() / wanted.norm()) < 5e-3
    assert torch.equal(run(slice(1020, 1030), 1, True), simulated[1020:1030])
    rounded = run(slice(0, 50), 1, False, exact=False)
    assert float((rounded - whole[:50]).norm() / whole[:50].norm()) < 1e-2


def test_experts_nobody_chose_are_not_read() -> None:
    """Their weights are NaN, and nothing shows it."""
    generator = rng(13)
    good = [quantize_fp8(torch.randn(40, 64, generator=generator)) for _ in range(2)]
    codes = torch.full((40, 64), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
    bad = Fp8Weight(codes, good[0].scale)
    down = [quantize_fp8(torch.randn(64, 40, generator=generator)) for _ in range(2)]
    runtime = _native.Runtime()
    out = torch.empty(3, 64)
    up = [native.native_matrix(w) for w in (good[0], bad)]
    lower = [native.native_matrix(w) for w in down]
    chosen, weights = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)
    _native.experts(
        runtime, torch.randn(3, 64, generator=generator), chosen, weights, up, lower, up, [], 10.0, True, out
    )
    assert out.isfinite().all()


def test_scratch_grows_no_more_once_it_is_there() -> None:
    generator = rng(14)
    runtime = _native.Runtime(threads=1, exact=True)
    weight = make_weight("fp4", 300, 256, generator)
    x = make_input(200, 256, generator)
    counts = (1, 3, 17, 200)
    for n in counts:
        run_linear(runtime, x[:n], [weight], [True])
    before = runtime.growths
    for n in counts:
        run_linear(runtime, x[:n], [weight], [True])
    assert runtime.growths == before


def test_the_module_s_functions_are_the_reference_s() -> None:
    generator = rng(15)
    x = torch.randn(5, 3, 96, generator=generator)
    weight = make_weight("fp8", 30, 96, generator)
    torch.testing.assert_close(native.linear(x, weight), reference.linear(x, weight), rtol=1e-4, atol=1e-3)
    wo_b = torch.randn(20, 30, generator=generator)
    wo_a = torch.randn(30, 96, generator=generator)
    y = native.grouped_output(x, wo_a, wo_b, 3)
    torch.testing.assert_close(y, reference.grouped_output(x, wo_a, wo_b, 3), rtol=1e-4, atol=1e-3)
    gate = torch.randn(6, 20, generator=generator)
    given = RouteInput(gate, torch.zeros(6), None, torch.zeros(5, dtype=torch.int64), 2, 2.0)
    chosen, weights, affinity = native.route(y, given)
    expected = reference.route(y, given)
    assert torch.equal(chosen, expected[0])
    torch.testing.assert_close((weights, affinity), expected[1:])
    stack = ExpertWeights(
        *(torch.randn(6, a, b, generator=generator) for a, b in ((8, 20), (20, 8), (8, 20))), limit=10.0
    )
    two = ExpertWeights(
        *(torch.randn(2, a, b, generator=generator) for a, b in ((8, 20), (20, 8), (8, 20))), limit=10.0
    )
    got, due = (module.experts(y, chosen, weights, stack, two) for module in (native, reference))
    torch.testing.assert_close(got, due, rtol=1e-4, atol=float(due.abs().max()) * 1e-5)


def test_shapes_that_do_not_fit_are_named() -> None:
    runtime = _native.Runtime(threads=1)
    weight = native.native_matrix(torch.randn(4, 8))
    with pytest.raises(ValueError, match="x has 9 columns, the weight 8"):
        _native.linear(runtime, torch.randn(2, 9), [weight], [False], [torch.empty(2, 4)])
    with pytest.raises(ValueError, match=r"out is \[2, 5\]; it must be \[2, 4\]"):
        _native.linear(runtime, torch.randn(2, 8), [weight], [False], [torch.empty(2, 5)])
    with pytest.raises(ValueError, match="of one length"):
        _native.linear(runtime, torch.randn(2, 8), [weight], [], [torch.empty(2, 4)])
    with pytest.raises(ValueError, match="do not split"):
        _native.grouped_output(runtime, torch.randn(2, 24), weight, weight, 3, False, torch.empty(2, 4))
    with pytest.raises(ValueError, match="expert 7 of 1"):
        down = native.native_matrix(torch.randn(8, 4))
        chosen = torch.full((1, 1), 7, dtype=torch.int32)
        _native.experts(
            runtime,
            torch.randn(1, 8),
            chosen,
            torch.ones(1, 1),
            [weight],
            [down],
            [weight],
            [],
            1.0,
            False,
            torch.empty(1, 8),
        )
    with pytest.raises(ValueError, match="must be a matrix"):
        native.native_matrix(torch.randn(2, 4, 8))
