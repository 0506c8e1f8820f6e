"""The losses: weighted next-token cross entropy, the same one token further (MTP), the indexer's divergence, balance.

The head's gradient is taken a few hundred rows at a time while the loss is computed, so the logits of a long sequence
never exist at once and the head is not run twice. Every loss is a sum over a batch divided by what the whole step
holds, so that shares of a step (micro-batches, processes) add up to the step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.model.trace import Observer
from foveal.model.transformer import MtpBlock, Transformer
from foveal.train.batch import Batch

HEAD_ROWS = 1024
"""Tokens whose logits exist at a time."""


@dataclass(frozen=True)
class Weighing:
    """How a batch's losses become one number: `tokens` and `mtp_tokens` are the sums of token weights over the whole
    step, `rows` the batch's share of the step's rows; `index_kl`, `balance` and `mtp` the weights of the losses beside
    cross entropy (0: not computed). With `indexer_only` the divergence alone counts, and nothing else is run."""

    tokens: float
    mtp_tokens: float
    rows: float
    index_kl: float
    balance: float
    mtp: float
    indexer_only: bool = False


class TrainTransformer(nn.Module):
    """The network as the trainer sees it: rows of packed documents in, one loss out. The one module that DDP wraps and
    FSDP shards, so that everything with a gradient happens in its forward.

    With `precision` torch.bfloat16 matrix products are autocast (parameters, norms and softmax stay fp32).
    """

    def __init__(self, model: Transformer, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(
        self, batch: Batch, weighing: Weighing, experts: Mapping[int, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss, a scalar, and what it is made of: `nll` and `correct` [B * T] of the next token, the scalars
        `index_kl`, `balance` and `mtp`, and `loads`, for each gate that learns the tokens each expert got [E].

        With `experts` (of `choices`, [B * T, A] each) tokens go where it says, and `rerouted` is the share of these
        choices that the routers would not make now."""
        with self._autocast(batch):
            return self._losses(batch, weighing, experts or {})

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.tokens.device.type, self.precision, enabled=self.precision != torch.float32)

    def _losses(self, batch: Batch, weighing: Weighing, experts: Mapping[int, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        observer = Observer(index_loss=weighing.index_kl > 0 or weighing.indexer_only, experts=experts)
        streams = self.model(batch.tokens.flatten(), batch.packing, observer)
        divergence = _mean([loss.value for loss in observer.losses], streams)
        if weighing.indexer_only:
            return divergence * weighing.rows, {"index_kl": divergence.detach(), "loads": []}
        hidden = self.model.hidden(streams)
        value, nll, correct = head_loss(hidden, self.model.head.operand(), batch.targets, batch.weights)
        loss = value / weighing.tokens
        found: dict[str, Any] = {"nll": nll, "correct": correct, "index_kl": divergence.detach()}
        if weighing.mtp:
            value = self._ahead(streams, batch, observer)
            loss = loss + weighing.mtp * value / weighing.mtp_tokens
            found["mtp"] = value.detach() / max(1e-9, float(batch.mtp_weights.sum()))
        rows = batch.tokens.shape
        balances = [
            sequence_balance(load.affinity.unflatten(0, rows), load.chosen.unflatten(0, rows))
            for load in observer.loads
        ]
        balance = _mean(balances, streams)
        found["balance"] = balance.detach()
        found["loads"] = [
            F.one_hot(load.chosen, load.affinity.shape[-1]).sum(dim=(0, 1)).to(torch.float32) for load in observer.loads
        ]
        if experts:
            found["rerouted"] = _mean(
                [_differing(load.chosen, load.own) for load in observer.loads if load.own is not None], streams
            )
        return loss + weighing.rows * (weighing.index_kl * divergence + weighing.balance * balance), found

    def _ahead(self, streams: Tensor, batch: Batch, observer: Observer) -> Tensor:
        """Sum over tokens of the weighted loss of the token after the next one, mean over MTP blocks (chained)."""
        targets, weights = batch.mtp_targets, batch.mtp_weights
        values = []
        for block, predicted in self._predictions(streams, batch, observer):
            values.append(head_loss(block.hidden(predicted), self.model.head.operand(), targets, weights)[0])
            targets, weights = _ahead(targets), _ahead(weights)
        return torch.stack(values).mean()

    def _predictions(self, streams: Tensor, batch: Batch, observer: Observer) -> Iterator[tuple[MtpBlock, Tensor]]:
        """Each MTP block with the streams after it, one token further than the one before."""
        tokens, following = batch.following, batch.mtp_targets
        for block in self.model.mtp:
            assert isinstance(block, MtpBlock)
            position = batch.packing.position.flatten()
            embedded = self.model.embedded(tokens.flatten())
            streams = block.predict(streams, embedded, tokens.flatten(), position, batch.packing, observer)
            yield block, streams
            tokens, following = following, _ahead(following)

    @torch.no_grad()
    def answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """`nll` and `correct` [B * T] of the next token."""
        with self._autocast(batch):
            hidden = self.model.hidden(self.model(batch.tokens.flatten(), batch.packing))
            return head_loss(hidden, self.model.head.operand(), batch.targets, batch.weights)[1:]

    @torch.no_grad()
    def choices(self, batch: Batch, *, mtp: bool) -> dict[int, Tensor]:
        """The experts [B * T, A] that the routers which learn choose now, by the number of their layer; with `mtp`
        those of the MTP blocks, too."""
        with self._autocast(batch):
            observer = Observer()
            streams = self.model(batch.tokens.flatten(), batch.packing, observer)
            if mtp:
                for _ in self._predictions(streams, batch, observer):
                    pass
        return {load.layer: load.chosen for load in observer.loads}


def _mean(values: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.stack(list(values)).mean() if values else like.new_zeros(())


def _ahead(x: Tensor) -> Tensor:
    return F.pad(x[:, 1:], (0, 1))


def _differing(chosen: Tensor, own: Tensor) -> Tensor:
    """Share of the experts `chosen` [n, A] that are not among a token's `own` [n, A]."""
    return (chosen.unsqueeze(2) != own.unsqueeze(1)).all(-1).to(torch.float32).mean()


def sequence_balance(affinity: Tensor, chosen: Tensor) -> Tensor:
    """Sequence-wise balance loss (DeepSeek-V3 report, eq. 17-20): affinity [B, T, E], chosen [B, T, A] -> scalar.

    1 when every expert gets its share of every sequence, larger otherwise.

    In the report an expert's share of the tokens counts those that would choose it by affinity alone, without the
    balancing bias (and without anticipatory routing). Here `chosen` is where the tokens went: that is the load which is
    to be even, and every curve shown in docs/ was made so. The two are the same while biases are small;
    where a bias has evened out a sequence, this loss no longer pushes there and the report's still does.
    """
    experts, active = affinity.shape[-1], chosen.shape[-1]
    counts = F.one_hot(chosen, experts).sum(dim=(1, 2)).to(affinity.dtype)
    share = counts * experts / (active * affinity.shape[1])
    mean = (affinity / affinity.sum(-1, keepdim=True).clamp(min=1e-9)).mean(dim=1)
    return (share * mean).sum(-1).mean()


# ---------------------------------------------------------------------- the head


def head_loss(hidden: Tensor, head: Any, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted cross entropy through the head [V, d] of hidden [n, d] against targets (n of them, any shape).

    Returns sum(weight * nll), differentiable, and `nll` and `correct` (top-1) [n].
    """
    result: tuple[Tensor, Tensor, Tensor] = _HeadLoss.apply(hidden, head, targets.flatten(), weights.flatten())
    return result


class _HeadLoss(torch.autograd.Function):
    """Forward computes the gradient too, block by block; backward scales it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = hidden.requires_grad or head.requires_grad
        autocast = torch.is_autocast_enabled(hidden.device.type)
        dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
        matrix, rows = head.to(dtype), hidden.to(dtype)
        by_hidden, by_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        losses, correct = [], []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(rows), HEAD_ROWS):
                part = slice(start, start + HEAD_ROWS)
                logits = (rows[part] @ matrix.T).to(torch.float32)
                correct.append(logits.argmax(-1) == targets[part])
                log_probability = torch.log_softmax(logits, dim=-1)
                losses.append(F.nll_loss(log_probability, targets[part], reduction="none"))
                if wanted:
                    gradient = log_probability.exp_()
                    gradient.scatter_add_(1, targets[part].unsqueeze(1), gradient.new_full((len(gradient), 1), -1.0))
                    gradient = gradient.mul_(weights[part].unsqueeze(1)).to(dtype)
                    by_hidden[part] = (gradient @ matrix).to(by_hidden.dtype)
                    by_head += gradient.T @ rows[part]
        nll = torch.cat(losses)
        ctx.save_for_backward(by_hidden, by_head)
        ctx.mark_non_differentiable(nll, correct_all := torch.cat(correct))
        return (nll * weights).sum(), nll, correct_all

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_hidden, by_head = ctx.saved_tensors
        return by_hidden * grads[0], by_head * grads[0], None, None


# ---------------------------------------------------------------------- balancing without a loss

_GATE = re.compile(r"(?:^|\.)(layers|mtp)\.(\d+)\.ffn\.gate\.bias$")


def gate_biases(model: nn.Module, held: Callable[[str], bool] = lambda name: False) -> list[Tensor | None]:
    """The balancing biases of the gates that choose, layers first, then MTP blocks: live tensors, or None where one of
    that name is `held`."""
    found: dict[tuple[str, int], Tensor | None] = {}
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        match = _GATE.search(name)
        if match:
            found[match.group(1), int(match.group(2))] = None if held(name) else tensor
    return [found[key] for key in sorted(found)]


@torch.no_grad()
def move_biases(biases: Sequence[Tensor | None], loads: Sequence[Tensor], speed: float) -> None:
    """Loss-free balancing (report section on MoE): an expert with less than the mean load gets `speed` more bias. None
    stays; loads may be missing for the last gates (an MTP block that did not run)."""
    if len(biases) < len(loads):
        raise ValueError(f"{len(loads)} gates reported loads, {len(biases)} have a balancing bias")
    for bias, load in zip(biases, loads, strict=False):
        if bias is not None:
            bias.add_(torch.sign(load.mean() - load), alpha=speed)


__all__ = ["TrainTransformer", "Weighing", "gate_biases", "head_loss", "move_biases", "sequence_balance"]
