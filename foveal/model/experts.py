"""The mixture-of-experts sub-layer (report section 2.4)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from foveal.config import ModelConfig, Numerics
from foveal.model.linear import Matrix, MatrixStack
from foveal.model.trace import Observer, RouterLoad
from foveal.ops import ExpertWeights, Operations, RouteInput


class Gate(nn.Module):
    """The router. Hash layers look the experts up by token id (`tid2eid` [V, A]); the others learn a choice and carry
    a balancing `bias` [E] that gradients do not touch."""

    tid2eid: Tensor | None
    bias: Tensor | None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.hashed = layer < config.num_hash_layers
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        shape = (config.vocab_size, config.num_experts_per_tok)
        self.register_buffer("tid2eid", torch.zeros(shape, dtype=torch.int64) if self.hashed else None)
        self.register_buffer("bias", None if self.hashed else torch.zeros(config.n_routed_experts))


class RoutedExperts(nn.Module):
    """E experts' matrices, stacked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, d, m = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.w1 = MatrixStack(count, m, d, config.expert_dtype)
        self.w2 = MatrixStack(count, d, m, config.expert_dtype)
        self.w3 = MatrixStack(count, m, d, config.expert_dtype)


class SharedExpert(nn.Module):
    """The expert every token goes through; `n_shared_experts` of them are one wide expert in the checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, m = config.hidden_size, config.moe_intermediate_size * config.n_shared_experts
        self.w1 = Matrix(m, d, config.linear_dtype)
        self.w2 = Matrix(d, m, config.linear_dtype)
        self.w3 = Matrix(m, d, config.linear_dtype)


class Experts(nn.Module):
    """Router, routed experts and shared expert; names are the checkpoint's (`ffn.`)."""

    def __init__(self, config: ModelConfig, layer: int, ops: Operations, numerics: Numerics) -> None:
        super().__init__()
        self.ops, self.numerics, self.layer = ops, numerics, layer
        self.active, self.route_scale = config.num_experts_per_tok, config.routed_scaling_factor
        self.limit = config.swiglu_limit
        self.simulated = config.expert_dtype != "bf16"
        self.gate = Gate(config, layer)
        self.experts = RoutedExperts(config)
        self.shared_experts = SharedExpert(config)

    def forward(self, y: Tensor, tokens: Tensor, observer: Observer | None) -> Tensor:
        """Normed input y [n, d] of `tokens` [n] -> [n, d]."""
        chosen, weights = self._route(y, tokens, observer)
        routed, shared = self.experts, self.shared_experts
        return self.ops.experts(
            y,
            chosen,
            weights.to(y.dtype),
            ExpertWeights(routed.w1.operand(), routed.w2.operand(), routed.w3.operand(), self.limit),
            ExpertWeights([shared.w1.operand()], [shared.w2.operand()], [shared.w3.operand()], self.limit),
            simulate=self.numerics.activations and self.simulated,
        )

    def _route(self, y: Tensor, tokens: Tensor, observer: Observer | None) -> tuple[Tensor, Tensor]:
        """Experts [n, A] and their weights [n, A]."""
        gate = self.gate
        routing = RouteInput(gate.weight, gate.bias, gate.tid2eid, tokens, self.active, self.route_scale)
        if observer is None or gate.hashed:
            return self.ops.route(y, routing)[:2]
        told, own = observer.experts.get(self.layer), None
        if told is not None:
            own = self.ops.route(y.detach(), replace(routing, gate=gate.weight.detach()))[0]
            # A choice made before is a hash table with a row for every token.
            each = torch.arange(len(y), device=y.device)
            routing = RouteInput(gate.weight, None, told, each, self.active, self.route_scale)
        chosen, weights, affinity = self.ops.route(y, routing)
        observer.loads.append(RouterLoad(self.layer, affinity, chosen, own))
        return chosen, weights
