"""Muon and AdamW: orthogonal updates, batching changes nothing, states that come back."""

import math

import pytest
import torch
from torch import nn

from foveal.train.optim import UPDATE_RMS, OptimConfig, OptimError, Optimizer, Schedule, orthogonalize, uses_muon


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (4, 32, 32)])
def test_orthogonalize_gives_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-3, 1.0, 50.0, 1e4])[: shape[0], None, None]
    settled = torch.linalg.svdvals(orthogonalize(matrices, (8, 2), torch.float32))
    assert float((settled - 1).abs().max()) < 0.02
    rough = torch.linalg.svdvals(orthogonalize(matrices, (5, 0)))
    assert float(rough.min()) > 0.3 and float(rough.max()) < 1.4


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(24, 40)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix.unsqueeze(0), (8, 2), torch.float32)[0]
    assert float((found - u @ v).norm() / (u @ v).norm()) < 0.05


def test_zero_gradient_gives_zero_update() -> None:
    assert not bool(orthogonalize(torch.zeros(2, 8, 8)).any())


def test_batched_equals_one_by_one() -> None:
    torch.manual_seed(2)
    matrices = torch.randn(5, 24, 40)
    together = orthogonalize(matrices, (5, 0), torch.float32)
    alone = torch.cat([orthogonalize(m.unsqueeze(0), (5, 0), torch.float32) for m in matrices])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


class Parts(nn.Module):
    """Parameters under names the official layout has."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(10, 8)
        self.wq = nn.Linear(8, 8, bias=False)
        self.experts = nn.Parameter(torch.randn(3, 8, 16))
        self.q_norm = nn.LayerNorm(8, bias=False)


def set_grads(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_who_gets_muon() -> None:
    wanted = {
        "embed.weight": False,
        "head.weight": False,
        "norm.weight": False,
        "layers.0.attn.wq_b.weight": True,
        "layers.0.ffn.experts.w1.weight": True,
        "layers.0.ffn.gate.weight": True,
        "layers.0.hc_attn_fn": True,
        "layers.2.attn.compressor.ape": False,
        "layers.2.attn.indexer.compressor.ape": False,
    }
    assert {name: uses_muon(name, torch.zeros(4, 4)) for name in wanted} == wanted
    assert not uses_muon("layers.0.hc_attn_base", torch.zeros(4))


def test_the_first_muon_step_is_the_orthogonalised_gradient_of_each_expert() -> None:
    model = Parts()
    config = OptimConfig(muon_lr=0.1, clip=0.0, newton_schulz=(8, 2))
    optimizer = Optimizer(model.named_parameters(), config)
    before = model.experts.detach().clone()
    set_grads(model, 3)
    assert model.experts.grad is not None
    expected = torch.stack([orthogonalize(g.unsqueeze(0), (8, 2))[0] for g in model.experts.grad])
    optimizer.step()
    moved = (before - model.experts.detach()) / (0.1 * UPDATE_RMS * math.sqrt(16))
    torch.testing.assert_close(moved, expected, rtol=0.02, atol=0.01)


def test_adam_equals_torch() -> None:
    model, other = Parts(), Parts()
    config = OptimConfig(adam_lr=1e-2, clip=0.0, eps=1e-8, weight_decay=0.1)
    optimizer = Optimizer(model.named_parameters(), config)
    reference = torch.optim.AdamW([other.embed.weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for seed in range(5):
        set_grads(model, seed)
        set_grads(other, seed)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(model.embed.weight, other.embed.weight, rtol=1e-5, atol=1e-6)


def test_rates_by_name_and_freezing() -> None:
    model = Parts()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    half = Parts()
    full = Optimizer(model.named_parameters(), OptimConfig(lr_scale={"embed*": 0.0}, clip=0.0))
    halved = Optimizer(half.named_parameters(), OptimConfig(lr_scale={"wq.*": 0.5}, clip=0.0))
    set_grads(model, 1)
    set_grads(half, 1)
    full.step()
    halved.step()
    assert torch.equal(model.embed.weight, before["embed.weight"])
    moved, moved_half = before["wq.weight"] - model.wq.weight, before["wq.weight"] - half.wq.weight
    torch.testing.assert_close(moved_half, moved / 2, rtol=1e-3, atol=1e-6)


def test_a_bad_gradient_changes_nothing() -> None:
    model = Parts()
    optimizer = Optimizer(model.named_parameters())
    before = [p.detach().clone() for p in model.parameters()]
    set_grads(model, 0)
    assert model.wq.weight.grad is not None
    model.wq.weight.grad[0, 0] = float("nan")
    assert not math.isfinite(optimizer.step())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_state_comes_back() -> None:
    one, two = Parts(), Parts()
    first = Optimizer(one.named_parameters())
    for seed in range(3):
        set_grads(one, seed)
        first.step()
    two.load_state_dict(one.state_dict())
    second = Optimizer(two.named_parameters())
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for model, optimizer in ((one, first), (two, second)):
        set_grads(model, 9)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(OptimError, match="another model"):
        second.load_state_dict({"steps": torch.tensor(1)})


def test_blocks_are_orthogonalised_apart() -> None:
    model = Parts()
    optimizer = Optimizer(model.named_parameters(), OptimConfig(blocks={"wq.*": 2}, clip=0.0, newton_schulz=(8, 2)))
    before = model.wq.weight.detach().clone()
    set_grads(model, 4)
    optimizer.step()
    moved = before - model.wq.weight.detach()
    values = torch.linalg.svdvals(moved.view(2, 4, 8))
    assert float(values.max() / values.min()) < 1.05
    with pytest.raises(OptimError, match="blocks"):
        Optimizer(Parts().named_parameters(), OptimConfig(blocks={"wq.*": 3}))


def test_schedule() -> None:
    schedule = Schedule(warmup=0.1, decay_from=0.5, floor=0.1)
    assert schedule.scale(0.05) == pytest.approx(0.5)
    assert schedule.scale(0.1) == schedule.scale(0.5) == 1.0
    assert schedule.scale(1.0) == pytest.approx(0.1) == schedule.scale(2.0)
    values = [schedule.scale(i / 100) for i in range(50, 101)]
    assert values == sorted(values, reverse=True)
