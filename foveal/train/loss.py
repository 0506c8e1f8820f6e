"""The losses: weighted next-token cross entropy, the indexer's divergence, expert balance.

What is special here: the head's gradient is taken a few hundred rows at a time while the loss is computed, so the
logits of a long sequence never exist at once and the head is not run twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.config import ModelConfig
from foveal.model.attention import Segment
from foveal.model.state import PlainState
from foveal.model.trace import Observer
from foveal.train.device import multiplies_bf16


@dataclass(frozen=True)
class TrainOutput:
    """What a training forward pass of B sequences of T tokens yields: `streams` [B * T, S, d]; `index_kl` and
    `balance`, scalars; `loads`, for each MoE layer with learned routing the tokens each expert got [E]."""

    streams: Tensor
    index_kl: Tensor
    balance: Tensor
    loads: Sequence[Tensor]


class TrainableModel(Protocol):
    """What the trainer asks of a network."""

    def train_forward(self, tokens: Tensor) -> TrainOutput:
        """Tokens [B, T] int64 -> everything the losses need."""
        ...

    def logits(self, streams: Tensor) -> Tensor:
        """Streams [m, S, d] -> logits [m, V] fp32."""
        ...


class TrainTransformer:
    """The network as the trainer sees it: whole sequences from empty states, observed. With `precision` "bf16" matrix
    products are autocast (twice as fast here; parameters, norms and softmax stay fp32)."""

    def __init__(self, model: nn.Module, config: ModelConfig, precision: str = "fp32") -> None:
        self.model, self.config = model, config
        if precision == "auto":
            precision = "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"
        self.precision = precision

    def train_forward(self, tokens: Tensor) -> TrainOutput:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return self._train_forward(tokens)

    def _train_forward(self, tokens: Tensor) -> TrainOutput:
        count, length = tokens.shape
        observer = Observer(index_loss=True)
        segments = [Segment(PlainState(self.config), length) for _ in range(count)]
        streams: Tensor = self.model(tokens.reshape(-1), segments, observer)
        zero = streams.new_zeros(())
        divergences = [loss.value for loss in observer.losses]
        balances, loads = [], []
        for load in observer.loads:
            experts = load.affinity.shape[-1]
            affinity, chosen = load.affinity.view(count, length, -1), load.chosen.view(count, length, -1)
            balances.append(sequence_balance(affinity, chosen))
            loads.append(torch.bincount(load.chosen.reshape(-1), minlength=experts).to(torch.float32))
        return TrainOutput(
            streams=streams.to(torch.float32),
            index_kl=torch.stack(divergences).mean() if divergences else zero,
            balance=torch.stack(balances).mean() if balances else zero,
            loads=loads,
        )

    def logits(self, streams: Tensor) -> Tensor:
        result: Tensor = self.model.logits(streams)  # type: ignore[operator]
        return result


def sequence_balance(affinity: Tensor, chosen: Tensor) -> Tensor:
    """Sequence-wise balance loss (DeepSeek-V3 report, eq. 17-20): affinity [B, T, E], chosen [B, T, A] -> scalar.

    1 when every expert gets its share of every sequence, larger otherwise.
    """
    experts, active = affinity.shape[-1], chosen.shape[-1]
    counts = F.one_hot(chosen, experts).sum(dim=(1, 2)).to(affinity.dtype)
    share = counts * experts / (active * affinity.shape[1])
    mean = (affinity / affinity.sum(-1, keepdim=True).clamp(min=1e-9)).mean(dim=1)
    return (share * mean).sum(-1).mean()


@dataclass(frozen=True)
class TokenLoss:
    """What the head said: `value` the weighted mean loss, `losses` [n] nats a token, `correct` [n] bool (top-1)."""

    value: float
    losses: Tensor
    correct: Tensor


def backward_head(
    model: TrainableModel, streams: Tensor, targets: Tensor, weights: Tensor, *, rows: int = 1024
) -> tuple[TokenLoss, Tensor]:
    """Weighted cross entropy of `streams` [n, S, d] against `targets` [n], in blocks of `rows`.

    Gradients of the head's parameters are accumulated; the one of the streams is returned, to be passed on with
    ``torch.autograd.backward``. Loss = sum(weight * nll) / sum(weight).
    """
    total = weights.sum().clamp(min=1e-9)
    gradient = torch.empty_like(streams)
    losses, correct = [], []
    for start in range(0, len(targets), rows):
        part = slice(start, min(start + rows, len(targets)))
        leaf = streams[part].detach().requires_grad_(True)
        logits = model.logits(leaf).to(torch.float32)
        nll = F.cross_entropy(logits, targets[part], reduction="none")
        ((nll * weights[part]).sum() / total).backward()
        assert leaf.grad is not None
        gradient[part] = leaf.grad
        losses.append(nll.detach())
        correct.append(logits.detach().argmax(-1) == targets[part])
    every = torch.cat(losses)
    return TokenLoss(float((every * weights).sum() / total), every, torch.cat(correct)), gradient


_GATE = re.compile(r"(?:^|\.)layers\.(\d+)\.ffn\.gate\.bias$")


def gate_biases(model: nn.Module) -> list[Tensor]:
    """The balancing biases of the layers with learned routing, by layer: live tensors (buffers, or parameters that
    gradients must not move)."""
    found: dict[int, Tensor] = {}
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        match = _GATE.search(name)
        if match:
            found[int(match.group(1))] = tensor
    return [found[layer] for layer in sorted(found)]


@torch.no_grad()
def move_biases(biases: Sequence[Tensor], loads: Sequence[Tensor], speed: float) -> None:
    """Loss-free balancing (report section on MoE): an expert with less than the mean load gets `speed` more bias."""
    if len(biases) != len(loads):
        raise ValueError(f"{len(loads)} layers reported loads, {len(biases)} have a balancing bias")
    for bias, load in zip(biases, loads, strict=True):
        bias.add_(torch.sign(load.mean() - load), alpha=speed)
