"""The network under autograd, and what an observer sees of it."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import random_network, random_tokens, tiny_config
from torch import Tensor

from foveal.config import Numerics
from foveal.model import LayerTrace, Observer, PlainState, Segment, Transformer
from foveal.model.trace import IndexLoss

CONFIG = tiny_config()


def loss_of(model: Transformer, tokens: Tensor, observer: Observer | None = None) -> Tensor:
    streams = model(tokens, [Segment(PlainState(model.config), len(tokens))], observer)
    return torch.nn.functional.cross_entropy(model.logits(streams)[:-1], tokens[1:])


def trainable(seed: int, numerics: Numerics | None = None, **changes: object) -> Transformer:
    return random_network(tiny_config(**changes), seed, numerics).requires_grad_(True)


@pytest.mark.parametrize("numerics", [Numerics.none(), Numerics()], ids=["plain", "simulated"])
def test_every_parameter_learns(numerics: Numerics) -> None:
    """The language-model loss reaches all but the indexer (it only chooses); the indexer's own loss reaches that."""
    model = trainable(1, numerics, linear_dtype="fp8", num_hash_layers=2)
    tokens = random_tokens(CONFIG, 140, 1)
    observer = Observer(index_loss=True)
    loss_of(model, tokens, observer).backward(retain_graph=True)
    without = {name for name, p in model.named_parameters() if p.grad is None or not bool((p.grad != 0).any())}
    assert without == {name for name, _ in model.named_parameters() if ".indexer." in name}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    torch.stack([loss.value for loss in observer.losses]).sum().backward()
    assert all(bool((p.grad != 0).any()) for name, p in model.named_parameters() if p.grad is not None), "all of them"
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    "name",
    [
        "embed.weight",
        "hc_head_fn",
        "layers.0.hc_attn_fn",
        "layers.0.hc_ffn_scale",
        "layers.0.attn.attn_sink",
        "layers.1.attn.wq_a.weight",
        "layers.1.attn.compressor.ape",
        "layers.1.attn.compressor.wkv.weight",
        "layers.2.attn.compressor.wgate.weight",
        "layers.2.attn.wo_a.weight",
        "layers.3.ffn.gate.weight",
        "layers.3.ffn.experts.w2.weight",
    ],
)
def test_gradient_against_a_difference(name: str) -> None:
    """The slope of the loss along the gradient, from two losses a small step apart.

    With dense attention and hash routing: where something is chosen the loss has steps."""
    model, tokens = trainable(2, index_topk=512, num_hash_layers=4), random_tokens(CONFIG, 133, 2)
    parameter = dict(model.named_parameters())[name]
    loss_of(model, tokens).backward()
    assert parameter.grad is not None
    length = parameter.grad.norm()
    direction, step = parameter.grad / length, 0.02 * parameter.detach().norm() / parameter.numel() ** 0.5
    losses = []
    with torch.no_grad():
        for sign in (1, -2):
            parameter += sign * step * direction
            losses.append(loss_of(model, tokens).item())
    slope = (losses[0] - losses[1]) / (2 * step.item())
    assert slope == pytest.approx(length.item(), rel=0.05)


def test_gradients_pass_from_chunk_to_chunk() -> None:
    """Training in chunks without cutting the graph gives the gradient of the whole."""
    tokens, grads = random_tokens(CONFIG, 137, 3), []
    for sizes in ([137], [50, 1, 80, 6]):
        model, state = trainable(3), PlainState(CONFIG)
        parts = [model(part, [Segment(state, len(part))]) for part in tokens.split(sizes)]
        torch.nn.functional.cross_entropy(model.logits(torch.cat(parts))[:-1], tokens[1:]).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()) + 1e-8)


# ---------------------------------------------------------------------- observers


def observed(tokens: Tensor, sizes: list[int], **changes: object) -> list[LayerTrace]:
    """Traces of the last of `sizes` steps."""
    config = tiny_config(**changes)
    model, state = random_network(config, 4), PlainState(config)
    observer = Observer()
    with torch.inference_mode():
        for part in tokens.split(sizes):
            observer = Observer()
            model(part, [Segment(state, len(part))], observer)
    return observer.traces


@pytest.mark.parametrize("count", [1, 3, 5, 31, 33, 130])
def test_trace_of_the_last_token(count: int) -> None:
    """A trace for every layer: entries it could see, its window, masses that with the sinks make up the heads."""
    traces = observed(random_tokens(CONFIG, count, 4), [count])
    assert [(t.layer, t.segment, t.ratio) for t in traces] == [(i, 0, r) for i, r in enumerate(CONFIG.compress_ratios)]
    for trace in traces:
        visible = count // trace.ratio if trace.ratio else 0
        looked_at = min(visible, CONFIG.index_topk) if trace.ratio == 4 else visible
        assert len(trace.entries) == len(trace.entry_mass) == looked_at
        assert trace.entries.tolist() == sorted(set(trace.entries.tolist()))
        assert all(0 <= entry < visible for entry in trace.entries.tolist())
        assert len(trace.window_mass) == min(count, CONFIG.sliding_window)
        assert (trace.window_mass > 0).all()
        assert 0 < trace.entry_mass.sum() + trace.window_mass.sum() < CONFIG.num_attention_heads


def test_trace_does_not_depend_on_the_cut() -> None:
    tokens = random_tokens(CONFIG, 135, 4)
    for one, other in zip(observed(tokens, [135]), observed(tokens, [129, 5, 1]), strict=True):
        assert torch.equal(one.entries, other.entries)
        torch.testing.assert_close(one.entry_mass, other.entry_mass, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.window_mass, other.window_mass, rtol=1e-4, atol=1e-5)


def test_traces_of_several_segments() -> None:
    model, observer = random_network(CONFIG, 4), Observer()
    texts = [random_tokens(CONFIG, count, count) for count in (9, 1, 40)]
    segments = [Segment(PlainState(CONFIG), len(text)) for text in texts]
    with torch.inference_mode():
        plain = model(torch.cat(texts), [Segment(PlainState(CONFIG), len(text)) for text in texts])
        seen = model(torch.cat(texts), segments, observer)
    assert torch.equal(plain, seen), "observing changes nothing"
    assert [(t.layer, t.segment) for t in observer.traces] == [(layer, s) for layer in range(4) for s in range(3)]
    assert [len(t.window_mass) for t in observer.traces[:3]] == [9, 1, 32]


def test_router_loads() -> None:
    """One for each learned layer; hash layers have no choice to balance."""
    model, tokens, observer = trainable(5), random_tokens(CONFIG, 11, 5), Observer()
    model(tokens, [Segment(PlainState(CONFIG), 11)], observer)
    assert [load.layer for load in observer.loads] == [1, 2, 3]
    for load in observer.loads:
        assert load.affinity.shape == (11, 5) and load.chosen.shape == (11, 2) and load.affinity.requires_grad


@pytest.mark.parametrize("sparse", [False, True])
def test_index_loss_is_a_divergence(sparse: bool) -> None:
    """KL(p || softmax(scores)) over what each token may see, p the normalised mass; tokens without entries left out."""
    scores = torch.tensor([[9.0, 9.0, 9.0], [0.5, 9.0, 9.0], [0.2, -1.0, 9.0], [1.0, 2.0, 0.0]], requires_grad=True)
    visible = torch.tensor([0, 1, 2, 3])
    indices = torch.tensor([[-1, -1], [0, -1], [0, 1], [0, 2]]) if sparse else None
    seen = [[0], [0, 1], [0, 2] if sparse else [0, 1, 2]]
    mass = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.2, 0.2, 1.6]])
    expected = 0.0
    for row, columns in zip((1, 2, 3), seen, strict=True):
        target = mass[row, : len(columns)] if sparse else mass[row, columns]
        target = target / target.sum()
        log_index = torch.log_softmax(scores.detach()[row, columns], dim=0)
        expected += float((target * (target.log() - log_index)).sum()) / 3
    loss = IndexLoss.of(scores, mass[:, :2] if sparse else mass, visible, indices).value
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()
    assert (scores.grad[0] == 0).all() and (scores.grad[2, 2] == 0).all()
    nothing = IndexLoss.of(scores[:1], mass[:1, :0], visible[:1], None).value
    assert nothing.item() == 0


def test_following_the_index_loss_lowers_it() -> None:
    """A few steps on the indexer alone bring its distribution nearer to where attention goes."""
    model, tokens = trainable(6), random_tokens(CONFIG, 120, 6)
    indexer = [p for name, p in model.named_parameters() if ".indexer." in name]
    optimiser = torch.optim.Adam(indexer, lr=0.01)
    values = []
    for _ in range(8):
        observer = Observer(index_loss=True)
        model(tokens, [Segment(PlainState(CONFIG), len(tokens))], observer)
        loss = torch.stack([each.value for each in observer.losses]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert min(values) >= 0 and values[-1] < 0.8 * values[0]
