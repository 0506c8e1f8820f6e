"""The optimiser: Muon for matrices, AdamW for the rest (report section on training).

Matrices of one shape, from whatever layer or expert, are orthogonalised together in one batched Newton-Schulz
iteration, shared out over the processes of a run. State is a flat mapping of tensors, so that it is saved as
safetensors. Rates can be scaled by parameter name: a structured start needs its circuit refined, not overwritten.

Why not ``torch.optim.Muon`` (2.13): it takes matrices only (ours are stacked, one for each expert, and each must be
orthogonalised alone), one set of coefficients for all steps (the report has 8 fast and 2 settling ones), and its update
scale is 0.2 sqrt(max(n, m)) or sqrt(max(1, n / m)), not the report's 0.18 sqrt(max(n, m)).
"""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.train.device import product_dtype
from foveal.train.parallel import Group, gathered, local, share, whole

_QUINTIC = (3.4445, -4.7750, 2.0315)
_SETTLE = (2.0, -1.5, 0.5)
UPDATE_RMS = 0.18
"""Muon's update is scaled by this times sqrt(max(n, m)), which gives it about the RMS of an AdamW update."""

_ADAM_PATTERNS = (
    "embed.weight", "head.weight", "*norm.weight", "norm.weight", "*_base", "*_scale", "*.ape", "*.attn_sink",
    "mtp.*norm.weight",
)  # fmt: skip


class OptimError(FovealError, ValueError):
    """A saved optimiser state or a setting does not fit the model."""

    code = "invalid_request"


@dataclass(frozen=True)
class OptimConfig:
    """Rates and decays. `lr_scale` maps name patterns (`fnmatch`) to factors on both rates, the first that matches
    counts, 0 freezes; `blocks` maps patterns of matrices [k * n, m] to k, the number of logically independent ones."""

    muon_lr: float = 4e-3
    adam_lr: float = 2e-3
    weight_decay: float = 0.0
    momentum: float = 0.95
    newton_schulz: tuple[int, int] = (8, 2)
    """Steps with the fast and with the settling coefficients: the report's. (5, 0) is half the work, and looser."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    clip: float = 1.0
    """Gradient norm over all parameters; 0 does not clip."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)


def orthogonalize(matrices: Tensor, steps: tuple[int, int] = (8, 2), dtype: torch.dtype | None = None) -> Tensor:
    """Nearest semi-orthogonal matrices, approximately, by Newton-Schulz: [k, n, m] -> [k, n, m] fp32.

    Computed in `dtype`; None: the one the device multiplies fastest, of BF16 (which suffices) and FP32. After (8, 2)
    steps singular values lie within about 1 % of 1 (bf16), after (5, 0) between 0.7 and 1.2. Zero matrices stay zero.
    """
    dtype = dtype or product_dtype(matrices.device)
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)).to(dtype).contiguous()
    for a, b, c in [_QUINTIC] * steps[0] + [_SETTLE] * steps[1]:
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return (x.mT if tall else x).to(torch.float32)


def uses_muon(name: str, parameter: Tensor) -> bool:
    """Whether the report's rule gives `parameter` to Muon: every matrix but embedding and head; stacked experts count
    as matrices, position biases (`ape`) do not."""
    return parameter.ndim >= 2 and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _ADAM_PATTERNS)


@dataclass(frozen=True)
class _Member:
    """One parameter in Muon's care: `count` matrices of [n, m], and the factor on the rate."""

    name: str
    parameter: nn.Parameter
    count: int
    factor: float


class Optimizer:
    """Steps all trainable parameters of a model, by name."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig | None = None,
        group: Group | None = None,
        fixed: Mapping[str, slice] | None = None,
    ) -> None:
        """Parameters whose factor is 0 are left alone (and get ``requires_grad = False``), and so are the `fixed`
        columns of the matrices that it names. They may be sharded over the processes of `group`."""
        self.config, self.group = config or OptimConfig(), group or Group()
        self._fixed: list[tuple[nn.Parameter, slice]] = []
        self.steps = 0
        self._state: dict[str, Tensor] = {}
        self._muon: dict[tuple[int, int], list[_Member]] = defaultdict(list)
        self._adam: list[tuple[str, nn.Parameter, float]] = []
        for name, parameter in named:
            factor = _first_match(self.config.lr_scale, name, 1.0)
            if factor == 0 or not parameter.requires_grad:
                parameter.requires_grad_(False)
                continue
            if fixed and name in fixed:
                self._fixed.append((parameter, fixed[name]))
            if uses_muon(name, parameter):
                self._add_muon(name, parameter, factor)
            else:
                self._adam.append((name, parameter, factor))
                self._state[f"{name}:mean"] = torch.zeros_like(parameter, dtype=torch.float32)
                self._state[f"{name}:square"] = torch.zeros_like(parameter, dtype=torch.float32)
        if not self._muon and not self._adam:
            raise OptimError("the model has no trainable parameters")

    def _add_muon(self, name: str, parameter: nn.Parameter, factor: float) -> None:
        rows, columns = parameter.shape[-2:]
        blocks = int(_first_match(self.config.blocks, name, 1))
        if rows % blocks:
            raise OptimError(f"{name} has {rows} rows, which do not divide into {blocks} blocks")
        count = parameter.numel() // (rows * columns) * blocks
        self._muon[rows // blocks, columns].append(_Member(name, parameter, count, factor))
        self._state[f"{name}:momentum"] = torch.zeros_like(parameter, dtype=torch.float32)

    # ------------------------------------------------------------------ stepping

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is stepped."""
        return [m.parameter for group in self._muon.values() for m in group] + [p for _, p, _ in self._adam]

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> float:
        """One update with both rates times `scale` (the schedule). Returns the gradient norm before clipping.

        A step whose gradient is not finite changes nothing (the norm returned says so).
        """
        grads = [local(p.grad) for p in self.parameters() if p.grad is not None]
        norm = self._norm(grads)
        if not math.isfinite(norm):
            return norm
        if self.config.clip and norm > self.config.clip:
            torch._foreach_mul_(grads, self.config.clip / norm)
        self.steps += 1
        # Matrices are sharded by rows, so columns are whole everywhere.
        places = [local(parameter)[..., columns] for parameter, columns in self._fixed]
        kept = [place.clone() for place in places]
        for (rows, columns), members in self._muon.items():
            self._step_muon(rows, columns, members, scale)
        self._step_adam(scale)
        for place, value in zip(places, kept, strict=True):
            place.copy_(value)
        return norm

    def _norm(self, grads: list[Tensor]) -> float:
        if not grads:
            return 0.0
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        if self.group.kind == "fsdp":
            norm = self.group.total(norm.square()).sqrt()
        return float(norm)

    def _step_muon(self, rows: int, columns: int, members: list[_Member], scale: float) -> None:
        config = self.config
        present = [m for m in members if m.parameter.grad is not None]
        if not present:
            return
        stacked = []
        for member in present:
            assert member.parameter.grad is not None
            grad, momentum = local(member.parameter.grad), local(self._state[f"{member.name}:momentum"])
            momentum.mul_(config.momentum).add_(grad)
            full = gathered(grad.add(momentum, alpha=config.momentum), member.parameter)
            stacked.append(full.view(member.count, rows, columns))
        update = self._orthogonalize(torch.cat(stacked))
        update *= UPDATE_RMS * math.sqrt(max(rows, columns))
        start = 0
        for member in present:
            rate = config.muon_lr * scale * member.factor
            part = share(update[start : start + member.count].view(member.parameter.shape), member.parameter)
            local(member.parameter).mul_(1 - rate * config.weight_decay).sub_(part, alpha=rate)
            start += member.count

    def _orthogonalize(self, matrices: Tensor) -> Tensor:
        """Each process does its share of the matrices, and all get all."""
        size, steps = self.group.size, self.config.newton_schulz
        if size == 1:
            return orthogonalize(matrices, steps)
        each = -(-len(matrices) // size)
        padded = torch.cat([matrices, matrices.new_zeros(each * size - len(matrices), *matrices.shape[1:])])
        own = orthogonalize(padded[self.group.rank * each : (self.group.rank + 1) * each], steps)
        dist.all_gather_into_tensor(padded, own.contiguous())
        return padded[: len(matrices)]

    def _step_adam(self, scale: float) -> None:
        config = self.config
        first, second = config.betas
        # Bias correction as usual; the square root's is folded into the rate's denominator.
        corrected_first, corrected_second = 1 - first**self.steps, 1 - second**self.steps
        for name, parameter, factor in self._adam:
            if parameter.grad is None:
                continue
            grad, value = local(parameter.grad).to(torch.float32), local(parameter)
            mean, square = local(self._state[f"{name}:mean"]), local(self._state[f"{name}:square"])
            mean.lerp_(grad, 1 - first)
            square.mul_(second).addcmul_(grad, grad, value=1 - second)
            rate = config.adam_lr * scale * factor
            if parameter.ndim >= 2:
                value.mul_(1 - rate * config.weight_decay)
            denominator = (square / corrected_second).sqrt_().add_(config.eps)
            value.addcdiv_(mean, denominator, value=-rate / corrected_first)

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors by name, the step count as ``steps`` included; live, not copies, unless they are sharded (then
        all processes must call this)."""
        return {**{name: whole(tensor) for name, tensor in self._state.items()}, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take a state saved by `state_dict`. Raises `OptimError` when names or shapes differ; then nothing changed."""
        wanted = {name: tensor.shape for name, tensor in self._state.items()}
        given = {name: tensor.shape for name, tensor in state.items() if name != "steps"}
        if wanted != given or "steps" not in state:
            names = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            raise OptimError(f"optimiser state is of another model or configuration; differing: {names[:8]}")
        for name, tensor in self._state.items():
            local(tensor).copy_(share(state[name], tensor))
        self.steps = int(state["steps"])


def _first_match(patterns: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if fnmatch.fnmatchcase(name, pattern)), default)


@dataclass(frozen=True)
class Schedule:
    """Rate over the run: linear warm-up, constant, then a cosine down to `floor`; all in fractions of the budget."""

    warmup: float = 0.01
    decay_from: float = 0.3
    floor: float = 0.05

    def scale(self, progress: float) -> float:
        """Factor on the rates when `progress` (0 to 1) of the budget is used."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            return max(progress / self.warmup, 0.05)
        if progress <= self.decay_from:
            return 1.0
        along = (progress - self.decay_from) / max(1e-9, 1 - self.decay_from)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * along))
