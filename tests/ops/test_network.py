"""The reference backend's other operations against loops over the formulas.

Norms, rotation, queries, hyper-connections, the indexer, routing, experts, grouped output, simulated quantisations.
"""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.formats import dequantize, fake_quantize_fp4, fake_quantize_fp8, quantize_fp4, quantize_fp8
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveal.ops import ExpertWeights, HyperWeights, Operations, Rotation, RouteInput, reference

EPS = 1e-3


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def floats(x: Tensor) -> naive.Array:
    return x.detach().numpy().astype(np.float64)


def assert_close(ours: Tensor, expected: object, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(floats(ours), np.asarray(expected), atol=atol, rtol=1e-5)


def test_the_reference_has_every_operation() -> None:
    """Each function of the interface, with the same parameters."""
    for name, wanted in inspect.getmembers(Operations, inspect.isfunction):
        if name.startswith("_"):
            continue
        parameters = list(inspect.signature(wanted).parameters)[1:]
        assert list(inspect.signature(getattr(reference, name)).parameters) == parameters, name


# ---------------------------------------------------------------------- norms, rotation, linear maps


def test_rms_norm() -> None:
    x, weight = noise(3, 4, 10, seed=0), noise(10, seed=1)
    expected = [[naive.rms_norm(row, floats(weight), EPS) for row in rows] for rows in floats(x)]
    assert_close(reference.rms_norm(x, weight, EPS), expected)
    assert_close(reference.rms_norm(x[0], None, EPS), [naive.rms_norm(row, None, EPS) for row in floats(x[0])])


@pytest.mark.parametrize("pairs", [1, 3, 4])
def test_rotate_turns_the_last_channels(pairs: int) -> None:
    """Interleaved pairs, position times frequency; four pairs are all eight channels."""
    rotation = Rotation(noise(pairs, seed=5).abs())
    x, positions = noise(6, 2, 8, seed=6), torch.tensor([0, 1, 2, 100, 3000, 7])
    turned = reference.rotate(x, positions, rotation)
    expected = [
        [naive.rotate(head, p, floats(rotation.frequencies)) for head in rows]
        for rows, p in zip(floats(x), positions.tolist(), strict=True)
    ]
    assert_close(turned, expected)
    assert torch.equal(turned[..., : 8 - 2 * pairs], x[..., : 8 - 2 * pairs])
    assert_close(reference.rotate(turned, positions, rotation, inverse=True), floats(x))
    assert torch.equal(turned[0], x[0]), "position 0 does not turn"


def test_rotate_one_vector_a_token() -> None:
    rotation = Rotation(torch.tensor([0.5]))
    x, positions = noise(3, 4, seed=1), torch.tensor([4, 5, 6])
    assert_close(
        reference.rotate(x, positions, rotation), floats(reference.rotate(x[:, None], positions, rotation)[:, 0])
    )


def test_query() -> None:
    latent, weight = noise(3, 5, seed=0), noise(4 * 6, 5, seed=1)
    rotation, positions = Rotation(torch.tensor([0.7, 0.1])), torch.tensor([3, 4, 5])
    heads = (floats(latent) @ floats(weight).T).reshape(3, 4, 6)
    for eps in (EPS, None):
        expected = [
            [
                naive.rotate(head if eps is None else naive.rms_norm(head, None, eps), p, floats(rotation.frequencies))
                for head in rows
            ]
            for rows, p in zip(heads, positions.tolist(), strict=True)
        ]
        assert_close(reference.query(latent, weight, 4, positions, rotation, eps), expected)


def test_linear_with_and_without_simulated_activations() -> None:
    x, weight = noise(3, 160, seed=0), noise(7, 160, seed=1)
    assert_close(reference.linear(x, weight), floats(x) @ floats(weight).T, atol=1e-4)
    rounded = fake_quantize_fp8(x, 128)
    assert not torch.equal(rounded, x)
    assert_close(reference.linear(x, weight, simulate=True), floats(rounded) @ floats(weight).T, atol=1e-4)


@pytest.mark.parametrize("quantize", [quantize_fp4, quantize_fp8])
def test_linear_with_a_stored_weight(quantize: object) -> None:
    weight = quantize(noise(130, 160, seed=1))  # type: ignore[operator]
    x = noise(3, 160, seed=0)
    assert torch.equal(reference.linear(x, weight), reference.linear(x, dequantize(weight, torch.float32)))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_grouped_output(groups: int) -> None:
    heads, width, rank, d = 6, 5, 4, 7
    out = noise(3, heads, width, seed=0)
    wo_a, wo_b = noise(groups * rank, heads * width // groups, seed=1), noise(d, groups * rank, seed=2)
    expected = []
    for token in floats(out):
        latent: list[float] = []
        for g in range(groups):
            member = token[g * heads // groups : (g + 1) * heads // groups].reshape(-1)
            latent.extend(floats(wo_a)[g * rank : (g + 1) * rank] @ member)
        expected.append(floats(wo_b) @ np.array(latent))
    assert_close(reference.grouped_output(out, wo_a, wo_b, groups), expected, atol=1e-4)


def test_grouped_output_rounds_only_before_the_second_map() -> None:
    out, wo_a, wo_b = noise(3, 2, 5, seed=0), noise(8, 5, seed=1), noise(7, 8, seed=2)
    plain = torch.cat([out[:, g] @ wo_a[4 * g : 4 * g + 4].T for g in range(2)], dim=1)
    assert_close(
        reference.grouped_output(out, wo_a, wo_b, 2, simulate=True),
        floats(fake_quantize_fp8(plain, 128) @ wo_b.T),
        1e-5,
    )


# ---------------------------------------------------------------------- hyper-connections


def hyper(streams: int, d: int, *, head: bool = False, dtype: torch.dtype = torch.float32) -> HyperWeights:
    rows, scales = (streams, 1) if head else ((2 + streams) * streams, 3)
    fn, base = noise(rows, streams * d, seed=1, dtype=dtype), noise(rows, seed=2, dtype=dtype)
    return HyperWeights(fn, base, 1 + noise(scales, seed=3, dtype=dtype), 20, 1e-6, EPS)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_hyper_pre_and_post(count: int) -> None:
    d, weights = 5, hyper(count, 5)
    streams, out = noise(6, count, d, seed=4), noise(6, d, seed=5)
    u, post, comb = reference.hyper_pre(streams, weights)
    after = reference.hyper_post(out, streams, post, comb)
    scale, base = floats(weights.scale), floats(weights.base)
    for t in range(6):
        x = floats(streams[t])
        mix = naive.mixed(x, floats(weights.fn), EPS)
        pre = [naive.sigmoid(mix[j] * scale[0] + base[j]) + 1e-6 for j in range(count)]
        assert_close(u[t], sum(pre[j] * x[j] for j in range(count)))
        gains = [2 * naive.sigmoid(mix[count + j] * scale[1] + base[count + j]) for j in range(count)]
        assert_close(post[t], gains)
        start = 2 * count
        logits = np.array(
            [
                [mix[start + count * j + k] * scale[2] + base[start + count * j + k] for k in range(count)]
                for j in range(count)
            ]
        )
        mixing = naive.sinkhorn(logits, 20, 1e-6)
        assert_close(comb[t], mixing)
        for k in range(count):
            assert_close(after[t, k], gains[k] * floats(out[t]) + sum(mixing[j, k] * x[j] for j in range(count)))


def test_hyper_head() -> None:
    streams, weights = noise(6, 3, 5, seed=4), hyper(3, 5, head=True)
    for t, token in enumerate(floats(streams)):
        mix = naive.mixed(token, floats(weights.fn), EPS)
        gains = [naive.sigmoid(mix[j] * float(weights.scale[0]) + float(weights.base[j])) + 1e-6 for j in range(3)]
        assert_close(reference.hyper_head(streams, weights)[t], sum(gains[j] * token[j] for j in range(3)))


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 999))
def test_sinkhorn_columns_sum_to_one(size: int, iterations: int, seed: int) -> None:
    """The last step normalises columns; after twenty rounds rows are as good: the report's doubly stochastic B."""
    comb = reference.sinkhorn(1.5 * noise(4, size, size, seed=seed), iterations, 1e-6)
    assert (comb > 0).all()
    # A column that summed to s comes to s / (s + eps); after the first rounds s is about 1.
    torch.testing.assert_close(comb.sum(-2), torch.ones(4, size), rtol=0, atol=1e-5 if iterations == 20 else 1e-3)
    if iterations == 20:
        torch.testing.assert_close(comb.sum(-1), torch.ones(4, size), rtol=0, atol=0.05)


def test_equal_logits_mix_equally() -> None:
    assert_close(reference.sinkhorn(torch.zeros(1, 4, 4), 20, 1e-6), np.full((1, 4, 4), 0.25))


def test_gradients_of_hyper_connections() -> None:
    """In fp32, which the coefficients are by definition: differences are as coarse as that."""
    weights = hyper(2, 3, dtype=torch.float64)
    streams = noise(2, 2, 3, seed=4, dtype=torch.float64).requires_grad_()
    out = noise(2, 3, seed=5, dtype=torch.float64).requires_grad_()
    parameters = [t.requires_grad_() for t in (weights.fn, weights.base, weights.scale)]

    def function(*values: Tensor) -> Tensor:
        streams, out, *parameters = (value.to(torch.float32) for value in values)
        u, post, comb = reference.hyper_pre(streams, HyperWeights(*parameters, 3, 1e-6, EPS))
        after = reference.hyper_post(out, streams, post, comb)
        return torch.cat([u.flatten(), after.flatten()]).to(torch.float64)

    assert torch.autograd.gradcheck(function, (streams, out, *parameters), eps=1e-2, atol=2e-3, rtol=1e-2)


# ---------------------------------------------------------------------- the indexer


def test_index_scores() -> None:
    query, weights, keys = noise(3, 5, 8, seed=0), noise(3, 5, seed=1), noise(7, 8, seed=2)
    expected = [
        [naive.index_score(floats(query[t]), floats(weights[t]), floats(key)) for key in keys] for t in range(3)
    ]
    assert_close(reference.index_scores(query, weights, keys), expected)


def exact_scores(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, head weights and keys whose scores are exactly `scores` [n, s] (small integers, ties and all): one head
    for each key, which fires on that key alone."""
    count = scores.shape[1]
    return torch.eye(count).expand(len(scores), count, count), scores, torch.eye(count)


@given(data=st.data(), count=st.integers(1, 4), entries=st.integers(1, 12), k=st.integers(1, 14))
def test_top_k_with_ties(data: st.DataObject, count: int, entries: int, k: int) -> None:
    """Integer scores, so ties abound: the lowest index wins; ascending; -1 where fewer are visible."""
    numbers = st.lists(st.integers(-2, 2), min_size=entries, max_size=entries)
    scores = torch.tensor([data.draw(numbers) for _ in range(count)], dtype=torch.float32)
    visible = torch.tensor([data.draw(st.integers(0, entries)) for _ in range(count)])
    chosen = reference.index_topk(*exact_scores(scores), visible, k)
    width = min(k, entries)
    assert chosen.shape == (count, width) and chosen.dtype == torch.int64
    for row, own, see in zip(chosen.tolist(), scores.tolist(), visible.tolist(), strict=True):
        expected = naive.best(own, see, k)
        assert row == expected + [-1] * (width - len(expected))


def test_top_k_of_many_rows_over_blocks() -> None:
    """More tokens than are scored at a time; no token and no key are fine too."""
    query, weights, keys = noise(150, 4, 8, seed=0), noise(150, 4, seed=1), noise(60, 8, seed=2)
    visible = torch.arange(150).clamp(max=60)
    chosen = reference.index_topk(query, weights, keys, visible, 9)
    scores = reference.index_scores(query, weights, keys)
    for i, row in enumerate(chosen.tolist()):
        expected = naive.best(scores[i].tolist(), int(visible[i]), 9)
        assert row == expected + [-1] * (9 - len(expected))
    assert reference.index_topk(query[:0], weights[:0], keys, visible[:0], 9).shape == (0, 9)
    assert reference.index_topk(query, weights, keys[:0], visible * 0, 9).shape == (150, 0)


def test_negative_scores_are_chosen_before_hidden_ones() -> None:
    chosen = reference.index_topk(*exact_scores(torch.tensor([[-5.0, -7.0, -1.0, 9.0]])), torch.tensor([3]), 2)
    assert chosen.tolist() == [[0, 2]]


# ---------------------------------------------------------------------- routing and experts


def test_learned_routing() -> None:
    """The bias moves the choice, not the weight."""
    y, gate, bias = noise(9, 6, seed=0), noise(7, 6, seed=1), noise(7, seed=2)
    chosen, weights, affinity = reference.route(
        y, RouteInput(gate, bias, None, torch.zeros(9, dtype=torch.int64), 3, 2.5)
    )
    moved = False
    for t in range(9):
        s = naive.affinity(floats(y[t]), floats(gate))
        assert_close(affinity[t], s)
        best = sorted(range(7), key=lambda e: -(s[e] + float(bias[e])))[:3]
        assert sorted(chosen[t].tolist()) == sorted(best)
        moved |= set(best) != set(np.argsort(-s)[:3].tolist())
        for e, weight in zip(chosen[t].tolist(), weights[t].tolist(), strict=True):
            assert weight == pytest.approx(2.5 * s[e] / s[best].sum(), rel=1e-5)
    assert moved


def test_routing_ties_take_the_lowest_expert() -> None:
    y = torch.ones(2, 3)
    for bias, expected in (([0.0] * 5, {0, 1}), ([0.0, 1.0, 0.0, 1.0, 1.0], {1, 3})):
        tokens = torch.zeros(2, dtype=torch.int64)
        chosen, weights, _ = reference.route(y, RouteInput(torch.ones(5, 3), torch.tensor(bias), None, tokens, 2, 1.0))
        assert [set(row) for row in chosen.tolist()] == [expected] * 2
        assert_close(weights, np.full((2, 2), 0.5))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_hash_routing(dtype: torch.dtype) -> None:
    """The table says which; the gate says how much. Official tables are int64, converted ones int32."""
    y, gate = noise(4, 6, seed=0), noise(5, 6, seed=1)
    table = torch.tensor([[4, 0], [1, 2], [3, 1]], dtype=dtype)
    tokens = torch.tensor([2, 0, 0, 1])
    chosen, weights, _ = reference.route(y, RouteInput(gate, None, table, tokens, 2, 1.5))
    assert chosen.tolist() == [[3, 1], [4, 0], [4, 0], [1, 2]] and chosen.dtype == torch.int64
    for t in range(4):
        s = naive.affinity(floats(y[t]), floats(gate))[chosen[t].tolist()]
        assert_close(weights[t], 1.5 * s / s.sum())


def test_affinity_of_extreme_logits() -> None:
    gate = torch.tensor([[40.0], [-40.0], [0.0]])
    _, _, affinity = reference.route(
        torch.ones(1, 1), RouteInput(gate, torch.zeros(3), None, torch.zeros(1, dtype=torch.int64), 1, 1.0)
    )
    assert_close(affinity, [[math.sqrt(40), math.exp(-20), math.sqrt(math.log(2))]], atol=1e-12)


def expert_weights(count: int, d: int, m: int, limit: float, seed: int) -> ExpertWeights:
    shapes = ((m, d), (d, m), (m, d))
    return ExpertWeights(*(noise(count, *shape, seed=seed + i) for i, shape in enumerate(shapes)), limit)


@pytest.mark.parametrize("limit", [0.4, 10.0])
def test_experts(limit: float) -> None:
    """Routed and shared, both clamped; a token may name an expert twice; some experts may get no token."""
    y = noise(8, 5, seed=0)
    routed, shared = expert_weights(6, 5, 7, limit, 10), expert_weights(2, 5, 9, limit, 20)
    chosen = torch.randint(0, 5, (8, 3), generator=torch.Generator().manual_seed(1))
    chosen[0] = torch.tensor([2, 2, 4])
    weights = noise(8, 3, seed=3).abs()
    out = reference.experts(y, chosen, weights, routed, shared)
    listed = reference.experts(y, chosen, weights, ExpertWeights(*map(list, _stacks(routed)), limit), shared)
    assert torch.equal(out, listed), "stacked and listed experts are the same thing"
    for t in range(8):
        expected = sum(naive.swiglu(floats(y[t]), *_one(shared, e), limit) for e in range(2))
        for e, weight in zip(chosen[t].tolist(), weights[t].tolist(), strict=True):
            expected = expected + weight * naive.swiglu(floats(y[t]), *_one(routed, e), limit)
        assert_close(out[t], expected, atol=1e-4)


def _stacks(experts: ExpertWeights) -> tuple[Tensor, Tensor, Tensor]:
    stacks = (experts.w1, experts.w2, experts.w3)
    assert all(isinstance(stack, Tensor) for stack in stacks)
    return stacks  # type: ignore[return-value]


def _one(experts: ExpertWeights, e: int) -> tuple[naive.Array, naive.Array, naive.Array]:
    w1, w2, w3 = _stacks(experts)
    return floats(w1[e]), floats(w2[e]), floats(w3[e])


def test_experts_add_up_in_the_inputs_precision_under_autocast() -> None:
    """On a GPU autocast leaves a norm's output in fp32, and makes BF16 of the products that are added to it."""
    y, chosen, weights = noise(5, 8, seed=1), torch.tensor([[0, 1]] * 5), torch.full((5, 2), 0.5)
    w1, w3 = (noise(2, 6, 8, seed=s) for s in (2, 3))
    routed, shared = ExpertWeights(w1, noise(2, 8, 6, seed=4), w3, 10.0), ExpertWeights([], [], [], 10.0)
    exact = reference.experts(y, chosen, weights, routed, shared)
    with torch.autocast("cpu", torch.bfloat16):
        found = reference.experts(y, chosen, weights, routed, shared)
    assert found.dtype == torch.float32
    assert float((found - exact).norm() / exact.norm()) < 0.02


def test_clamp_is_one_sided_for_the_gate() -> None:
    """A gate of -50 stays (silu of it is 0); one of +50 becomes the limit; the linear part is cut on both sides."""
    one = torch.ones(1, 1, 1)
    none = ExpertWeights([], [], [], 2.0)
    for y, gate, up in ((50.0, 2.0, 2.0), (-50.0, -50.0, -2.0)):
        out = reference.experts(
            torch.tensor([[y]]), torch.tensor([[0]]), torch.ones(1, 1), ExpertWeights(one, one, one, 2.0), none
        )
        assert out.item() == pytest.approx(gate * naive.sigmoid(gate) * up, rel=1e-6)


def test_experts_add_up_in_ascending_order() -> None:
    """Sums of numbers of very different size show the order: (big - big) + small, in whatever order they are chosen."""
    big = torch.tensor([1e8, -1e8, 1.0])
    routed = ExpertWeights(torch.full((3, 1, 1), 3.0), big.view(3, 1, 1), torch.ones(3, 1, 1), 10.0)
    none = ExpertWeights([], [], [], 10.0)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        out = reference.experts(torch.ones(1, 1), torch.tensor([order]), torch.ones(1, 3), routed, none)
        assert out.item() == pytest.approx(3 * naive.sigmoid(3), rel=1e-6)


def test_simulated_experts_round_both_inputs() -> None:
    """y before w1 and w3; the weighted product before w2 (the weight is multiplied before rounding)."""
    y, chosen, weights = noise(3, 40, seed=0), torch.tensor([[1], [0], [1]]), torch.tensor([[0.3], [1.7], [0.9]])
    routed, none = expert_weights(2, 40, 33, 10.0, 10), ExpertWeights([], [], [], 10.0)
    out = reference.experts(y, chosen, weights, routed, none, simulate=True)
    rounded = fake_quantize_fp8(y, 128)
    w1, w2, w3 = _stacks(routed)
    for t, e in enumerate(chosen[:, 0].tolist()):
        z = torch.nn.functional.silu((w1[e] @ rounded[t]).clamp(max=10)) * (w3[e] @ rounded[t]).clamp(-10, 10)
        # A last-bit difference in z can flip an FP8 rounding: 1/16 of one of 33 products, weighed by w2.
        assert_close(out[t], floats(w2[e] @ fake_quantize_fp8(z * weights[t], 128)), atol=0.05 * float(z.abs().max()))


def test_gradients_of_routing_and_experts() -> None:
    y = noise(4, 3, seed=0, dtype=torch.float64).requires_grad_()
    gate = noise(3, 3, seed=1, dtype=torch.float64).requires_grad_()
    stacks = [
        noise(3, *s, seed=i, dtype=torch.float64).requires_grad_() for i, s in enumerate([(2, 3), (3, 2), (2, 3)])
    ]
    weights = noise(4, 2, seed=5, dtype=torch.float64).abs().requires_grad_()
    chosen = torch.tensor([[0, 1], [2, 1], [0, 2], [1, 0]])

    def through_experts(y: Tensor, weights: Tensor, *stacks: Tensor) -> Tensor:
        one = ExpertWeights([stacks[0][0]], [stacks[1][0]], [stacks[2][0]], 1.0)
        return reference.experts(y, chosen, weights, ExpertWeights(*stacks, 1.0), one)

    assert torch.autograd.gradcheck(through_experts, (y, weights, *stacks))
    tokens = torch.zeros(4, dtype=torch.int64)
    _, picked, _ = reference.route(y, RouteInput(gate, None, chosen[:1], tokens, 2, 1.0))
    picked[:, 0].sum().backward()
    assert gate.grad is not None and y.grad is not None
    assert (gate.grad[:2] != 0).any() and (gate.grad[2] == 0).all(), "only the chosen experts' rows get a gradient"


# ---------------------------------------------------------------------- simulated quantisation


@pytest.mark.parametrize("size", [1, 2, 8, 64, 128])
def test_hadamard_is_sylvesters_matrix(size: int) -> None:
    matrix = reference.hadamard(torch.eye(size))
    assert_close(matrix, naive.sylvester(size), atol=1e-6)
    x = noise(3, 2, size, seed=0)
    assert_close(reference.hadamard(x), floats(x) @ naive.sylvester(size).T)
    assert_close(reference.hadamard(reference.hadamard(x)), floats(x))


@pytest.mark.parametrize("rotary", [2, 8, 100])
def test_quantize_kv(rotary: int) -> None:
    """FP8 in blocks of 64, then the rotary channels in BF16. All channels may be rotary."""
    x = noise(5, 100, seed=0)
    out = reference.quantize_kv(x, rotary)
    assert torch.equal(out[:, 100 - rotary :], x[:, 100 - rotary :].to(torch.bfloat16).to(torch.float32))
    blocks = [fake_quantize_fp8(part, 64) for part in x[:, : 100 - rotary].split(64, dim=1)]
    assert torch.equal(out[:, : 100 - rotary], torch.cat(blocks, dim=1) if rotary < 100 else x[:, :0])


@pytest.mark.parametrize("size", [8, 32, 64, 128])
def test_quantize_index_rotates_first(size: int) -> None:
    x = noise(5, 2, size, seed=0)
    rotated = reference.hadamard(x)
    expected = torch.cat([fake_quantize_fp4(part, 32) for part in rotated.split(32, dim=-1)], dim=-1)
    out = reference.quantize_index(x)
    assert torch.equal(out, expected)
    assert (out - rotated).abs().max() < 0.35 * rotated.abs().max()


def test_simulated_quantisation_passes_gradients_straight_through() -> None:
    x = noise(2, 64, seed=0).requires_grad_()
    reference.quantize_kv(x, 8).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))
    x.grad = None
    reference.quantize_index(x).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, np.ones((2, 64)) @ naive.sylvester(64))
