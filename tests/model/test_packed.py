"""Rows of packed documents compute what each document computes alone, and their gradients are the same."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import random_network, random_tokens, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal.config import Numerics
from foveal.model import Observer, PlainState, Segment, Transformer
from foveal.ops import Packing
from foveal.train.packing import pack

CONFIG = tiny_config()
LENGTHS = [[133, 5, 262], [1, 1, 3, 4, 127, 128, 136], [400]]


def trained(seed: int, numerics: Numerics | None = None, **changes: object) -> Transformer:
    return random_network(tiny_config(**changes), seed, numerics).requires_grad_(True)


def alone(model: Transformer, tokens: Tensor, lengths: list[list[int]]) -> Tensor:
    """Streams of each document run from an empty state, in the order of the rows."""
    parts = [part for row, sizes in zip(tokens, lengths, strict=True) for part in row.split(sizes)]
    return torch.cat([model(part, [Segment(PlainState(model.config), len(part))]) for part in parts])


@pytest.mark.parametrize("topk", [12, 512], ids=["sparse", "dense"])
@pytest.mark.parametrize("numerics", [Numerics.none(), Numerics()], ids=["plain", "simulated"])
def test_packed_documents_compute_what_they_do_alone(topk: int, numerics: Numerics) -> None:
    model = trained(1, numerics, index_topk=topk)
    tokens = random_tokens(CONFIG, 3 * 400, 2).view(3, 400)
    packed = model(tokens.flatten(), pack(LENGTHS))
    expected = alone(model, tokens, LENGTHS)
    if numerics.kv:
        # Where sums run in another order a rounding may fall the other way, and another entry be chosen.
        same = (packed - expected).abs().amax(dim=(1, 2)) < 1e-3
        assert float(same.double().mean()) > 0.93
    else:
        torch.testing.assert_close(packed, expected, rtol=1e-3, atol=1e-4)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), seed=st.integers(0, 9))
@settings(max_examples=12, deadline=None)
def test_any_packing(lengths: list[int], seed: int) -> None:
    model = random_network(tiny_config(compress_ratios=(4, 128), num_hidden_layers=2), seed)
    tokens = random_tokens(CONFIG, sum(lengths), seed).unsqueeze(0)
    with torch.no_grad():
        packed = model(tokens.flatten(), pack([lengths]))
        torch.testing.assert_close(packed, alone(model, tokens, [lengths]), rtol=1e-3, atol=1e-4)


def test_gradients_are_those_of_the_documents_alone() -> None:
    tokens, grads = random_tokens(CONFIG, 400, 3).unsqueeze(0), []
    weight = torch.randn(400, 4, 40, generator=torch.Generator().manual_seed(0))
    for packed in (True, False):
        model = trained(3, num_hash_layers=4)
        streams = model(tokens.flatten(), pack([LENGTHS[0]])) if packed else alone(model, tokens, [LENGTHS[0]])
        (streams * weight).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-2, atol=1e-4 * float(grad.abs().max()) + 1e-7)


@pytest.mark.parametrize("topk", [12, 512], ids=["sparse", "dense"])
def test_the_index_loss_is_that_of_the_sequence(topk: int) -> None:
    model, tokens = trained(4, index_topk=topk), random_tokens(CONFIG, 400, 4)
    one, other = Observer(index_loss=True), Observer(index_loss=True)
    model(tokens, [Segment(PlainState(model.config), 400)], one)
    model(tokens, Packing.whole(1, 400), other)
    for alone_loss, packed_loss in zip(one.losses, other.losses, strict=True):
        # Of 400 tokens the first three see no entry: the packed form counts them, as 0.
        assert packed_loss.value.item() * 400 / 397 == pytest.approx(alone_loss.value.item(), rel=1e-3)
    assert [load.chosen.tolist() for load in one.loads] == [load.chosen.tolist() for load in other.loads]


def test_positions_are_relative() -> None:
    """A document at an offset computes what it does at 0, as far as fp32 angles allow: where two experts are nearly
    equal a token may take the other one."""
    model = random_network(CONFIG, 5)
    tokens = random_tokens(CONFIG, 300, 5)
    with torch.no_grad():
        near, far = (model(tokens, pack([[300]], [[offset]])) for offset in (0, 128 * 700))
    same = torch.isclose(near, far, rtol=0.05, atol=0.05)
    assert float(same.all(dim=-1).all(dim=-1).double().mean()) > 0.98


def test_a_jump_hides_what_is_too_far_away_for_the_window() -> None:
    """After a jump a token sees the past through entries only, and no window reaches over it."""
    model = random_network(tiny_config(compress_ratios=(0, 0, 0, 0)), 6)
    tokens = random_tokens(CONFIG, 300, 6)
    with torch.no_grad():
        jumped = model(tokens, pack([[300]], jumps=[[[(128, 1 << 17)]]]))
        apart = model(tokens, pack([[128, 172]]))
    torch.testing.assert_close(jumped, apart, rtol=0.05, atol=0.05)
    packing = pack([[300]], jumps=[[[(128, 1 << 17)]]])
    assert packing.position[0, 128] == 128 + (1 << 17)
    assert not packing.windows[4].follows[0, 32] and packing.windows[4].visible[0, 128, :32].all()


def test_bad_packings_are_refused() -> None:
    position = torch.arange(8).unsqueeze(0)
    with pytest.raises(ValueError, match="ascend"):
        Packing.of(torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]]), position % 4)
    with pytest.raises(ValueError, match="multiple of 128"):
        Packing.of(torch.zeros(1, 8, dtype=torch.int64), position + 3)


def test_mtp_block_against_its_formula() -> None:
    """Report, section on MTP: both inputs normed, projected, added for each stream; one window-only layer."""
    config = tiny_config(num_nextn_predict_layers=1, compress_ratios=(0, 4, 128, 4, 0))
    model = random_network(config, 7)
    tokens = random_tokens(config, 40, 7)
    packing = Packing.whole(1, 40)
    block = model.mtp[0]
    with torch.no_grad():
        streams = model(tokens, packing)
        nexts = tokens.roll(-1)
        found = block.predict(streams, model.embedded(nexts), nexts, packing.position.flatten(), packing)

        def norm(x: Tensor, weight: Tensor) -> Tensor:
            return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

        own = norm(model.embed.weight[nexts], block.enorm.weight) @ block.e_proj.weight.T
        inner = torch.stack(
            [own + norm(streams[:, j], block.hnorm.weight) @ block.h_proj.weight.T for j in range(4)], 1
        )
        expected = block(inner, nexts, torch.arange(40), [Segment(PlainState(config), 40)], None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert block.hidden(found).shape == (40, config.hidden_size)
