"""The native indexer against the reference, and against itself: batches, threads, pages and paths change no bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers.formats import TensorCodec, encode_index_fp4, fake_quantize_fp4
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal import _native
from foveal.backends.reference.native_ops import indexing as indexer
from foveal.cache.codec import IndexFp8
from foveal.ops import reference

ISAS = _native.available_isas()
EXACT = 2.0**-22
"""Bound of the error of an fp32 sum of heads whose dot products are exact, relative to the sum of magnitudes."""

# heads, width, keys, k: the two real shapes, and widths and counts that are multiples of nothing
SHAPES = [
    (4, 64, 700, 128),
    (64, 128, 200, 48),
    (1, 32, 64, 1),
    (3, 40, 301, 7),
    (5, 6, 65, 64),
    (7, 100, 999, 512),
    (2, 1, 10, 3),
]


def runtime(isa: str, threads: int = 1, exact: bool = True) -> _native.Runtime:
    return _native.Runtime(threads=threads, isa=isa, exact=exact)


def problem(n: int, heads: int, width: int, keys: int, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, head weights of either sign, and keys whose numbers `kind` holds exactly."""
    g = torch.Generator().manual_seed(seed)
    query, weights = torch.randn(n, heads, width, generator=g), torch.randn(n, heads, generator=g)
    made = torch.randn(keys, width, generator=g) * torch.randn(keys, 1, generator=g).mul(0.5).exp()
    if kind == "fp4":
        query, made = fake_quantize_fp4(query), fake_quantize_fp4(made)
    if kind == "bf16":
        made = made.bfloat16().float()
    return query.contiguous(), weights, made.contiguous()


def pack(rt: _native.Runtime, keys: Tensor, kind: str, per_page: int = 64, step: int = 64) -> _native.IndexKeys:
    return _native.IndexKeys(rt, keys, *keys.shape, codec="f32", kind=kind, per_page=per_page, step=step)


def scores(rt: _native.Runtime, query: Tensor, weights: Tensor, keys: _native.IndexKeys) -> Tensor:
    out = torch.full((len(query), keys.count), math.nan)
    _native.index_scores(rt, query, weights, keys, out)
    return out


def topk(
    rt: _native.Runtime, query: Tensor, weights: Tensor, keys: _native.IndexKeys, visible: Tensor, k: int
) -> Tensor:
    chosen = torch.full((len(query), k), -7, dtype=torch.int32)
    _native.index_topk(rt, [(query, weights, keys, visible, chosen)])
    return chosen


def definition(scored: Tensor, visible: Tensor, k: int) -> Tensor:
    """Sort what is visible by (score descending, index ascending), keep the first k, ascending."""
    rows = []
    for row, count in zip(scored.tolist(), visible.clamp(0, scored.shape[1]).tolist(), strict=True):
        best = sorted(sorted(range(count), key=lambda s: (-row[s], s))[:k])
        rows.append(best + [-1] * (k - len(best)))
    return torch.tensor(rows, dtype=torch.int32).reshape(len(scored), k)


def bound(query: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """Sum of the magnitudes of everything a score is a sum of."""
    products = torch.einsum("nhc,sc->nhs", query.double().abs(), keys.double().abs())
    return torch.einsum("nh,nhs->ns", weights.double().abs(), products)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("kind", "exact", "error"),
    [
        ("fp4", True, EXACT),
        ("fp4", False, EXACT),
        ("f32", True, 1e-6),
        ("bf16", True, 2.0**-15),
        ("bf16", False, 2.0**-8),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_agree_with_the_reference(
    isa: str, kind: str, exact: bool, error: float, shape: tuple[int, int, int, int]
) -> None:
    heads, width, count, _ = shape
    query, weights, keys = problem(5, heads, width, count, kind, seed=heads * 1000 + count)
    rt = runtime(isa, exact=exact)
    got = scores(rt, query, weights, pack(rt, keys, kind))
    want = reference.index_scores(query.double(), weights.double(), keys.double())
    assert ((got - want).abs() <= error * bound(query, weights, keys)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["fp4", "bf16", "f32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_topk_is_that_of_the_scores(isa: str, threads: int, kind: str, shape: tuple[int, int, int, int]) -> None:
    heads, width, count, k = shape
    query, weights, keys = problem(6, heads, width, count, kind, seed=count)
    visible = torch.tensor([count, 0, k, min(k + 1, count), count + 9, count // 2])
    rt = runtime(isa, threads)
    packed = pack(rt, keys, kind)
    want = definition(scores(rt, query, weights, packed), visible, k)
    assert torch.equal(topk(rt, query, weights, packed, visible, k), want)


@pytest.mark.parametrize("isa", ISAS[:2])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_pages_split_over_threads_give_the_same(isa: str, threads: int, n: int) -> None:
    query, weights, keys = problem(n, 4, 64, 40_000, "fp4", seed=n)
    rt, alone = runtime(isa, threads), runtime(isa, 1)
    visible = torch.full((n,), 40_000) - torch.arange(n) * 3
    want = definition(scores(alone, query, weights, pack(alone, keys, "fp4"))[:2], visible[:2], 128)
    got = topk(rt, query, weights, pack(rt, keys, "fp4"), visible, 128)
    assert torch.equal(got[:2], want)
    assert torch.equal(got, topk(alone, query, weights, pack(alone, keys, "fp4"), visible, 128))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["fp4", "bf16", "f32"])
def test_a_token_scores_the_same_alone_and_in_any_batch(isa: str, kind: str) -> None:
    query, weights, keys = problem(100, 5, 36, 150, kind, seed=4)
    rt = runtime(isa)
    packed = pack(rt, keys, kind)
    whole = scores(rt, query, weights, packed)
    for n in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64):
        assert torch.equal(scores(rt, query[:n], weights[:n], packed), whole[:n])
    assert torch.equal(scores(rt, query[7:8], weights[7:8], packed), whole[7:8])


@pytest.mark.parametrize("isa", ISAS)
def test_a_batch_of_513_chooses_what_each_token_would(isa: str) -> None:
    query, weights, keys = problem(513, 4, 32, 260, "fp4", seed=6)
    visible = torch.arange(513).clamp(max=260)
    rt = runtime(isa, 2)
    packed = pack(rt, keys, "fp4")
    whole = topk(rt, query, weights, packed, visible, 16)
    for i in (0, 15, 16, 17, 31, 32, 63, 64, 200, 512):
        one = slice(i, i + 1)
        assert torch.equal(topk(rt, query[one], weights[one], packed, visible[one], 16), whole[one])


@pytest.mark.parametrize("isa", ISAS)
def test_jobs_together_give_what_each_gives(isa: str) -> None:
    rt = runtime(isa, 2)
    jobs, wants = [], []
    for seed, (n, count, k) in enumerate([(1, 5000, 64), (3, 10, 20), (0, 7, 2), (33, 900, 64), (2, 0, 4)]):
        query, weights, keys = problem(n, 4, 64, count, "fp4", seed)
        packed, visible = pack(rt, keys, "fp4"), torch.full((n,), count)
        wants.append(topk(rt, query, weights, packed, visible, k))
        jobs.append((query, weights, packed, visible, torch.full((n, k), -7, dtype=torch.int32)))
    seen, scored = _native.index_topk(rt, jobs)
    assert all(torch.equal(job[4], want) for job, want in zip(jobs, wants, strict=True))
    assert seen == 5000 + 30 + 33 * 900
    assert scored <= seen


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_on_one_base_choose_what_each_would_alone(isa: str, threads: int) -> None:
    rt = runtime(isa, threads)
    _, _, common = problem(1, 4, 64, 2500, "fp4", seed=20)
    base = pack(rt, common, "fp4")
    jobs, wants = [], []
    for seed, (n, more, k) in enumerate(
        [(1, 0, 128), (1, 70, 128), (3, 500, 30), (40, 1, 5), (2, 10, 9000), (1, 5000, 64)]
    ):
        query, weights, own = problem(n, 4, 64, more, "fp4", seed + 30)
        fork = base.forked(rt, own, more, codec="f32")
        assert fork.count == 2496 + more
        plain = pack(rt, torch.cat([common[:2496], own]), "fp4")
        visible = torch.full((n,), fork.count) - torch.arange(n) * 20
        wants.append(topk(rt, query, weights, plain, visible, k))
        jobs.append((query, weights, fork, visible, torch.full((n, k), -7, dtype=torch.int32)))
    _native.index_topk(rt, jobs)
    assert all(torch.equal(job[4], want) for job, want in zip(jobs, wants, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_base_on_a_base(isa: str, threads: int) -> None:
    """All but one begin with one base; some go on with another, two of those with a third."""
    rt = runtime(isa, threads)
    bases = [pack(rt, problem(1, 4, 64, 2560, "fp4", seed=40)[2], "fp4")]
    for number in (1, 2):
        more = problem(1, 4, 64, 2560, "fp4", seed=40 + number)[2]
        bases.append(bases[-1].forked(rt, more, 2560, codec="f32"))
    jobs, alone = [], []
    for seed, base in enumerate([bases[0], bases[1], bases[2], bases[2], bases[1], bases[0], None]):
        query, weights, own = problem(1 + seed % 3, 4, 64, 70, "fp4", seed + 50)
        keys = pack(rt, own, "fp4") if base is None else base.forked(rt, own, 70, codec="f32")
        visible = torch.full((len(query),), keys.count)
        out = [torch.full((len(query), 33), -7, dtype=torch.int32) for _ in range(2)]
        jobs.append((query, weights, keys, visible, out[0]))
        alone.append((query, weights, keys, visible, out[1]))
    _native.index_topk(rt, jobs)
    for together, job in zip(jobs, alone, strict=True):
        _native.index_topk(rt, [job])
        assert torch.equal(together[4], job[4])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [32, 64, 96, 31])
def test_integer_sums_are_the_float_sums(isa: str, width: int) -> None:
    query, weights, keys = problem(4, 4, width, 200, "fp4", seed=width)
    rt = runtime(isa)
    assert torch.equal(
        scores(rt, query, weights, pack(rt, keys, "fp4")), scores(rt, query, weights, pack(rt, keys, "f32"))
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["fp4", "bf16", "f32"])
@pytest.mark.parametrize(("per_page", "step"), [(64, 1), (64, 7), (1, 1), (50, 3), (16, 16)])
def test_pages_and_the_way_they_were_written_change_nothing(isa: str, kind: str, per_page: int, step: int) -> None:
    query, weights, keys = problem(2, 4, 72, 150, kind, seed=8)
    rt = runtime(isa)
    packed, whole = pack(rt, keys, kind, per_page, step), pack(rt, keys, kind)
    assert torch.equal(scores(rt, query, weights, packed), scores(rt, query, weights, whole))
    visible = torch.tensor([150, 149])
    assert torch.equal(topk(rt, query, weights, packed, visible, 20), topk(rt, query, weights, whole, visible, 20))


def scaled_blocks(keys: Tensor, row: int, exponent: int) -> Tensor:
    """Keys whose row `row` has its first block of 32 multiplied by a power of two."""
    keys = keys.clone()
    keys[row, :32] *= 2.0**exponent
    return keys


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("exponent", [2, 3, 4, 9, -6, -140])
def test_scales_far_apart_inside_a_key(isa: str, exponent: int) -> None:
    query, weights, keys = problem(3, 4, 64, 200, "fp4", seed=9)
    rt = runtime(isa)
    odd = scaled_blocks(keys, 70, exponent)
    got, want = scores(rt, query, weights, pack(rt, odd, "fp4")), reference.index_scores(query, weights, odd)
    assert ((got - want).abs() <= 1e-6 * bound(query, weights, odd)).all()
    others = torch.arange(200) != 70
    assert torch.equal(got[:, others], scores(rt, query, weights, pack(rt, keys, "fp4"))[:, others])


@pytest.mark.parametrize("isa", ISAS)
def test_queries_that_are_not_fp4_are_taken_as_they_are(isa: str) -> None:
    query, weights, keys = problem(4, 4, 64, 150, "fp4", seed=10)
    odd = query.clone()
    odd[1, 2, 5] += 0.01
    odd[2, 0, :32] *= 2.0**12
    odd[3] = 0.0
    rt = runtime(isa)
    packed = pack(rt, keys, "fp4")
    got = scores(rt, odd, weights, packed)
    want = reference.index_scores(odd.double(), weights.double(), keys.double())
    assert ((got - want).abs() <= 1e-6 * bound(odd, weights, keys)).all()
    assert torch.equal(got[0], scores(rt, query, weights, packed)[0])
    assert not got[3].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [32, 64, 128])
def test_stored_keys_of_every_codec(isa: str, width: int) -> None:
    query, weights, keys = problem(2, 4, width, 90, "fp4", seed=width)
    fp8 = TensorCodec(IndexFp8(width))
    raw = fp8.encode(keys)
    stored: list[tuple[str, str, Tensor, Tensor]] = [
        ("fp4", "fp4", encode_index_fp4(keys), keys),
        ("bf16", "fp4", keys.bfloat16(), keys),
        ("bf16", "bf16", keys.bfloat16(), keys),
        ("fp4", "f32", encode_index_fp4(keys), keys),
        ("fp8", "f32", raw, fp8.decode(raw, torch.float32)),
    ]
    rt = runtime(isa)
    for codec, kind, data, plain in stored:
        packed = _native.IndexKeys(rt, data, 90, width, codec=codec, kind=kind)
        got = scores(rt, query, weights, packed)
        assert torch.equal(got, scores(rt, query, weights, pack(rt, plain.contiguous(), kind))), (codec, kind)


SIGNED = (torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[1.0, -1.0]]))
"""A query and weights under which the key (a, b) scores relu(a) - relu(b): any score can be made."""


def keys_scoring(values: list[float]) -> Tensor:
    value = torch.tensor(values).reshape(-1)
    return torch.stack([value.clamp_min(0), (-value).clamp_min(0)], dim=1).contiguous()


@given(
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, -2.5, 1e-30, 3e38, -3e38, 7.0]), min_size=1, max_size=700),
    st.integers(0, 300),
    st.integers(0, 750),
    st.sampled_from(ISAS),
)
@settings(max_examples=150, deadline=None)
def test_ties_take_the_lowest_index(values: list[float], k: int, visible: int, isa: str) -> None:
    rt = runtime(isa)
    packed, seen = pack(rt, keys_scoring(values), "f32"), torch.tensor([visible])
    assert torch.equal(topk(rt, *SIGNED, packed, seen, k), definition(torch.tensor([values]), seen, k))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("order", [sorted, lambda v: sorted(v, reverse=True), list], ids=["rising", "falling", "mixed"])
def test_thousands_of_scores_in_any_order(isa: str, order: Callable[[list[float]], list[float]]) -> None:
    g = torch.Generator().manual_seed(11)
    values = order(torch.randint(-1500, 1500, (6000,), generator=g).float().tolist())
    rt = runtime(isa, 2)
    packed, seen = pack(rt, keys_scoring(values), "f32"), torch.tensor([6000])
    for k in (1, 2, 128, 512, 3000):
        assert torch.equal(topk(rt, *SIGNED, packed, seen, k), definition(torch.tensor([values]), seen, k))


@pytest.mark.parametrize("isa", ISAS)
def test_not_a_number_counts_as_the_lowest(isa: str) -> None:
    keys = keys_scoring([1.0] * 100)
    keys[:90] = math.nan
    rt = runtime(isa)
    for kind in ("f32", "fp4"):
        chosen = topk(rt, *SIGNED, pack(rt, keys, kind), torch.tensor([100]), 12)
        assert chosen.tolist() == [[0, 1, *range(90, 100)]]


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_a_number_hides_nothing_beside_it(isa: str) -> None:
    """One key of each page is better than all before; half of the others have no score."""
    g = torch.Generator().manual_seed(16)
    pages, rt = 60, runtime(isa)
    best = torch.arange(pages) * 64 + torch.randint(64, (pages,), generator=g)
    values, lost = torch.zeros(pages * 64), torch.rand(pages * 64, generator=g) < 0.5
    values[best], lost[best] = 1.0 + torch.arange(pages), False
    keys = keys_scoring(values.tolist())
    keys[lost] = math.nan
    seen, scored = torch.tensor([pages * 64]), values.masked_fill(lost, -math.inf).unsqueeze(0)
    for k in (1, 5, 30):
        assert torch.equal(topk(rt, *SIGNED, pack(rt, keys, "f32"), seen, k), definition(scored, seen, k))


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_is_allocated_twice(isa: str) -> None:
    query, weights, keys = problem(40, 4, 64, 3000, "fp4", seed=12)
    rt = runtime(isa, 1)
    packed, visible = pack(rt, keys, "fp4"), torch.full((40,), 3000)
    topk(rt, query, weights, packed, visible, 128)
    before = rt.growths
    for n in (1, 7, 40):
        topk(rt, query[:n], weights[:n], packed, visible[:n], 128)
    assert rt.growths == before


def test_a_pack_of_fp4_keys_is_as_small_as_the_keys() -> None:
    rt = runtime(ISAS[-1])
    assert pack(rt, torch.zeros(64 * 3, 64), "fp4").nbytes == 64 * 3 * 34
    assert pack(rt, torch.zeros(64, 128), "fp4").nbytes == 64 * 68


# ---------------------------------------------------------------- the operations on tensors


@pytest.mark.parametrize("quantized", [True, False])
def test_operations_agree_with_the_reference(quantized: bool) -> None:
    query, weights, keys = problem(20, 4, 64, 400, "fp4" if quantized else "f32", seed=13)
    want = reference.index_scores(query, weights, keys)
    error = 1e-6 * bound(query, weights, keys)
    assert ((indexer.index_scores(query, weights, keys) - want).abs() <= error).all()
    visible = torch.arange(20) * 25
    chosen, known = (
        indexer.index_topk(query, weights, keys, visible, 50),
        reference.index_topk(query, weights, keys, visible, 50),
    )
    assert chosen.dtype == known.dtype and chosen.shape == known.shape
    # Rounding may exchange keys whose scores are within the error of each other, nothing else.
    threshold = want.masked_fill(torch.arange(400) >= visible.unsqueeze(1), -math.inf).topk(50).values[:, -1:]
    for row, (ours, theirs) in enumerate(zip(chosen.tolist(), known.tolist(), strict=True)):
        for index in set(ours) ^ set(theirs):
            assert (want[row, index] - threshold[row]).abs() <= 2 * error[row, index]


def test_operations_take_transposed_tensors_and_fewer_keys_than_asked() -> None:
    query, weights, keys = problem(3, 4, 8, 30, "f32", seed=14)
    chosen = indexer.index_topk(
        query.transpose(0, 1).contiguous().transpose(0, 1), weights, keys, torch.full((3,), 30), 99
    )
    assert torch.equal(chosen, torch.arange(30).expand(3, 30))
    assert indexer.index_topk(query[:0], weights[:0], keys, torch.zeros(0, dtype=torch.int64), 5).shape == (0, 5)
    assert indexer.index_scores(query, weights, keys[:0]).shape == (3, 0)


def test_wrong_arguments_are_refused() -> None:
    query, weights, keys = problem(2, 4, 64, 10, "fp4", seed=15)
    rt = runtime(ISAS[0])
    packed = pack(rt, keys, "fp4")
    visible = torch.zeros(2, dtype=torch.int64)
    out = torch.empty(2, 10)
    with pytest.raises(ValueError, match="channels"):
        _native.index_scores(rt, query[:, :, :32].contiguous(), weights, packed, out)
    with pytest.raises(ValueError, match="weights"):
        _native.index_scores(rt, query, weights[:1], packed, out)
    with pytest.raises(ValueError, match="scores"):
        _native.index_scores(rt, query, weights, packed, out[:, :9].contiguous())
    with pytest.raises(ValueError, match="visible"):
        topk(rt, query, weights, packed, visible[:1], 3)
    with pytest.raises(ValueError, match="bytes"):
        _native.IndexKeys(rt, keys, 11, 64, codec="f32", kind="fp4")
    with pytest.raises(ValueError, match="codec"):
        _native.IndexKeys(rt, keys, 10, 64, codec="int4", kind="fp4")
    with pytest.raises(ValueError, match="pack kind"):
        _native.IndexKeys(rt, keys, 10, 64, codec="f32", kind="fp5")
    with pytest.raises(ValueError, match="64 keys"):
        _native.IndexKeys(rt, keys, 10, 64, codec="f32", kind="fp4", per_page=65)
    with pytest.raises(TypeError):
        topk(rt, query.transpose(0, 1), weights, packed, visible, 3)
